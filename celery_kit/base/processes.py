"""What identifies a process, so that others can tell later whether it is dead; and a clock that no stop of it stops."""

import os
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path


def identity(pid: int) -> list[str | None]:
    """What identifies a process: machine and process namespace, process id, start time. None for what is not known."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:  # not Linux, where another process cannot be checked
        return [None, str(pid), None]
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [machine, str(pid), None]
    return [machine, str(pid), None if state in "ZX" else fields[18]]  # proc(5): starttime


def is_dead(process: list[str | None]) -> bool:
    """Whether the process with this identity is known to be dead. False for one of another machine or process namespace."""
    machine, pid, _ = process
    now = identity(int(str(pid)))
    return bool(machine) and now[0] == machine and now != process


def mark(pid: int) -> str:
    """The identity of a process as a short text without `.` and `/`."""
    machine, number, started = identity(pid)
    return f"{sha256(machine.encode()).hexdigest()[:12] if machine else ''}-{number}-{started or ''}"


def marks_dead(text: str) -> bool:
    """As :func:`is_dead`, for the text that :func:`mark` returned."""
    machine, _, rest = text.partition("-")
    pid = rest.partition("-")[0]
    now = mark(int(pid)) if pid.isdecimal() else ""
    return bool(machine) and now.startswith(f"{machine}-") and now != text


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


#: Seconds that also count while the process is stopped or the machine is suspended.
clock: Callable[[], float] = _boottime if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
