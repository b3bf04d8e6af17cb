"""Notes of processes, and whether the process that a note names still runs: an id alone may be another's by now.

A note holds the moment at which its process began, and lies in the folder that the process belongs to: a copy of that folder
names none.
"""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any


def write(note: Path, pid: int, **about: Any) -> None:
    """Note a process and what there is to know about it: whole, or not at all."""
    draft = note.with_suffix(".draft")
    draft.write_text(json.dumps({"pid": pid, "began": began(pid), "folder": str(note.parent.resolve()), **about}))
    draft.replace(note)


def read(note: Path) -> dict[str, Any] | None:
    """What a note holds, whether its process runs or not; None where it cannot be read."""
    with suppress(OSError, ValueError):
        about = json.loads(note.read_text())
        return about if isinstance(about, dict) and {"pid", "began", "folder"} <= about.keys() else None
    return None


def running(note: Path) -> dict[str, Any] | None:
    """What a note holds, if the very process that it names runs and belongs to the note's folder; else None."""
    about = read(note)
    if about and about["began"] and about["folder"] == str(note.parent.resolve()):
        return about if about["began"] == began(about["pid"]) else None
    return None


def began(pid: int) -> str:
    """When a process began, in its system's words, and in which boot. Empty if it has ended, reaped or not.

    By /proc, or by `ps` on a system without it, such as macOS.
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
