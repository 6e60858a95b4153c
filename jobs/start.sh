#!/bin/sh
# A step as a job of a cluster: sh jobs/start.sh STEP PRESET ...
#
# The head may have been started outside its virtual environment (ENV/bin/ray start): `python` on its PATH is then
# another one than that of Ray's own processes, or none. A job is a child of these: the command line of Ray's raylet
# names the Python that it starts workers with. The Python of the PATH, which --requirements may have
# installed for this job, is used if it has all required packages and the same Ray; otherwise Ray's own.

needed="ray pyarrow numpy scipy statsmodels matplotlib jinja2 tyro torch transformers deepspeed tensorboardX"

# Versions of Ray and Python if all that is needed is there; otherwise nothing, and on standard error what is missing.
versions() {
    # shellcheck disable=SC2086  # the names are separate arguments
    [ -n "$1" ] && "$1" -c '
import importlib.metadata, importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("lacks " + ", ".join(missing))
print(importlib.metadata.version("ray"), *sys.version_info[:2])
' $needed
}

workers_python() {
    process=$$
    while [ "${process:-0}" -gt 1 ] && [ -r "/proc/$process/cmdline" ]; do
        found=$(tr '\0' '\n' <"/proc/$process/cmdline" | sed -n \
            -e 's/^--python_worker_command="\([^"]*\)" .*/\1/p' -e 's/^--python_worker_command=\([^" ]*\) .*/\1/p')
        if [ -n "$found" ]; then
            echo "$found"
            return
        fi
        process=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$process/status")
    done
}

step=$1
shift
here=$(versions python 2>/dev/null)
workers=$(workers_python)
there=$(versions "$workers" 2>/dev/null)
if [ -n "$here" ] && { [ -z "$there" ] || [ "$here" = "$there" ]; }; then
    exec python -m "jobs.$step" "$@"
elif [ -n "$there" ]; then
    exec "$workers" -m "jobs.$step" "$@"
fi
python=${workers:-$(command -v python)}
found="none on its PATH"
[ -n "$python" ] && found="$python, which $(versions "$python" 2>&1 | tail -n 1)"
cat >&2 <<END

slick: the head $(uname -n) has no Python for this job: found $found; expected one with the packages of \
requirements.lock, which Ray itself runs with. Activate its environment before \`ray start\`, install them there (pip \
install -r requirements.lock), or give --requirements requirements.lock to slick submit
END
exit 2
