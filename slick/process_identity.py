"""Identifies processes across machines and reboots."""

import os


def machine_identity() -> list[str]:
    """Boot id of the machine and namespace of its processes; empty if the system does not provide them."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return [file.read().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        return []


def process_identity(pid: int) -> str | None:
    """Boot id, process namespace, pid and start time of a process; None if it is not running."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else " ".join([*machine_identity(), str(pid), fields[18]])
