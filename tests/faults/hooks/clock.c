/* Moves the time of day of a process and its children, for LD_PRELOAD. The file that SLICK_FAULTS_CLOCK names holds the
 * seconds to add; it is read at most twice a second. The monotonic clock stays. Waits until a time of day are moved back,
 * so that they last as long as the caller wants. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define DAY_OF_TIME 1000000000L /* a time of day exceeds this; monotonic times do not */

static volatile long offset, read_at;

static long current_offset(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC_COARSE, &now);
    long half_seconds = now.tv_sec * 2 + now.tv_nsec / 500000000L;
    if (half_seconds == read_at) return offset;
    read_at = half_seconds;
    const char *path = getenv("SLICK_FAULTS_CLOCK");
    int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    char text[32] = "0";
    if (file >= 0) {
        long length = syscall(SYS_read, file, text, sizeof text - 1);
        text[length > 0 ? length : 0] = 0;
        syscall(SYS_close, file);
    }
    return offset = atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int error = (int)syscall(SYS_clock_gettime, clock, time);
    if (!error && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += current_offset();
    return error;
}

int gettimeofday(struct timeval *restrict value, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    value->tv_sec = now.tv_sec;
    value->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

static struct timespec moved_back(const struct timespec *end) {
    struct timespec real = *end;
    if (end->tv_sec > DAY_OF_TIME) real.tv_sec -= current_offset();
    return real;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict end) {
    static int (*original)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!original) original = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec real = moved_back(end);
    return original(condition, mutex, &real);
}

int pthread_cond_clockwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict end) {
    static int (*original)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
    if (!original) original = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    struct timespec real = moved_back(end);
    return original(condition, mutex, clock, &real);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict end) {
    static int (*original)(sem_t *, const struct timespec *);
    if (!original) original = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec real = moved_back(end);
    return original(semaphore, &real);
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict end) {
    static int (*original)(sem_t *, clockid_t, const struct timespec *);
    if (!original) original = dlsym(RTLD_NEXT, "sem_clockwait");
    struct timespec real = moved_back(end);
    return original(semaphore, clock, &real);
}
