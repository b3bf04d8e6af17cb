"""Files that no other user can have written, and files that may hold anything."""

import errno
import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path


class NotOursError(PermissionError):
    """A file or a folder whose content cannot be trusted: another user owns it or may write to it, or it is no such file."""

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


def read_ours(path: Path, most: int) -> bytes:
    """Read a file of `most` bytes that only this process's user can have written. Raises NotOursError, OSError."""
    if path.is_symlink():
        raise NotOursError("it is a link", path)
    return _read(path, most, _check_ours, getattr(os, "O_NOFOLLOW", 0))


def read_regular(path: Path, most: int) -> bytes:
    """Read a file of `most` bytes, whoever has written it. Raises NotOursError for a pipe or a larger file, OSError."""
    return _read(path, most, lambda *_: None, 0)


def _read(path: Path, most: int, check: Callable[[os.stat_result, Path], None], flags: int) -> bytes:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    number = os.open(path, os.O_RDONLY | flags | getattr(os, "O_NONBLOCK", 0))
    try:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise NotOursError("it is no regular file", path)
        check(about, path)
        if about.st_size > most:
            raise NotOursError(f"it has {about.st_size:,} bytes, more than {most:,}", path)
        with open(number, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(number)


def _check_ours(about: os.stat_result, path: Path) -> None:
    mode = stat.S_IMODE(about.st_mode)
    if not hasattr(os, "geteuid"):  # Windows, which has no such file modes
        return
    if about.st_uid != os.geteuid():
        raise NotOursError(f"it belongs to user {about.st_uid}, and this process to {os.geteuid()}", path)
    if mode & 0o022:
        raise NotOursError(f"others may write to it (mode {mode:04o}): chmod go-w", path)
