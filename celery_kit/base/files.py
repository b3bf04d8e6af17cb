"""Files that no other user can have written."""

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path


class NotOursError(PermissionError):
    """A file or a folder that another user owns or may write to, so that its content cannot be trusted."""

    def __init__(self, why: str, path: Path) -> None:
        super().__init__(errno.EPERM, why, str(path))


def private(folder: Path, ours: Collection[str]) -> None:
    """Make a folder that no other user can read, or check one that exists. Raises NotOursError, OSError.

    `ours`: the endings of the names of our own files. A folder that others can read, and that holds any other file, is refused
    and keeps its mode.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise NotOursError("it is no folder, or a link to one: name the folder itself", folder)
    _check_ours(about, folder)
    if about.st_mode & 0o077:
        if other := next((one.name for one in os.scandir(folder) if not one.name.endswith(tuple(ours))), None):
            raise NotOursError(f"others can look into it, and it holds {other}: name a folder of its own", folder)
        folder.chmod(0o700)


def read_ours(path: Path) -> bytes:
    """Read a file that only this process's user can have written. Raises NotOursError, OSError."""
    if path.is_symlink():
        raise NotOursError("it is a link", path)
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(number, "rb") as file:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise NotOursError("it is no regular file", path)
        _check_ours(about, path)
        return file.read()


def _check_ours(about: os.stat_result, path: Path) -> None:
    mode = stat.S_IMODE(about.st_mode)
    if not hasattr(os, "geteuid"):  # Windows, which has no such file modes
        return
    if about.st_uid != os.geteuid():
        raise NotOursError(f"it belongs to user {about.st_uid}, and this process to {os.geteuid()}", path)
    if mode & 0o022:
        raise NotOursError(f"others may write to it (mode {mode:04o}): chmod go-w", path)
