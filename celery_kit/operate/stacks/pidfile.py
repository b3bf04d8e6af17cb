"""Pid files, and whether the process that one names is still running. The id alone may belong to another process by now.

A pid file also has the start time of its process, and the folder that it belongs to: in a copy of the folder, it is not valid.
"""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from celery_kit.base.files import read_regular
from celery_kit.operate.stacks.docker import Facts

#: The most bytes of a pid file.
MOST = 1024 * 1024


def write(note: Path, pid: int, **about: object) -> None:
    """Write the pid file of a process, with facts about it. The write is atomic."""
    draft = note.with_suffix(".draft")
    draft.write_text(json.dumps({"pid": pid, "began": began(pid), "folder": str(note.parent.resolve()), **about}))
    draft.replace(note)


def read(note: Path) -> Facts | None:
    """The content of a pid file, whether its process is running or not. None if it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        about = json.loads(read_regular(note, MOST))
        return (
            about if isinstance(about, dict) and {"began", "folder"} <= about.keys() and type(about.get("pid")) is int else None
        )
    return None


def running(note: Path) -> Facts | None:
    """The content of a pid file if its process is running and belongs to the file's folder; otherwise None."""
    about = read(note)
    if about and about["began"] and about["folder"] == str(note.parent.resolve()):
        return about if about["began"] == began(about["pid"]) else None
    return None


def began(pid: int) -> str:
    """When a process started, in the system's own format, and in which boot. Empty if it has exited, even if not yet reaped.

    Reads /proc, or runs `ps` on a system without it, such as macOS.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return "" if state in (b"Z", b"X") else f"{fields[18].decode()} of {boot}"  # field 22 of proc(5)
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    with suppress(OSError):
        words = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        environ = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
        shown = subprocess.run(words, capture_output=True, text=True, env=environ, check=False).stdout
        return "" if shown.startswith("Z") else shown.partition(" ")[2].strip()
    return ""
