"""Refusing a value: one clear line, exit code 2."""

import sys
import tempfile
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn, TypeVar

T = TypeVar("T")
_unprinted: ContextVar[list[str] | None] = ContextVar("unprinted", default=None)


def refuse(message: str) -> NoReturn:
    """Print `message` as one line on standard error and exit with code 2.

    Raises SystemExit, because Celery's command line would print a traceback for an ordinary error.
    """
    if (messages := _unprinted.get()) is None:
        print(f"celery-kit: {message}", file=sys.stderr)
    else:
        messages.append(message)
    raise SystemExit(2)


def unless_refused(step: Callable[[], T]) -> tuple[T | None, str]:
    """What `step` gives, and why it refused; the process goes on, and nothing is printed."""
    messages: list[str] = []
    token = _unprinted.set(messages)
    try:
        return step(), ""
    except SystemExit:
        if not messages:  # of somebody else
            raise
        return None, messages[-1]
    finally:
        _unprinted.reset(token)


class Absent:
    """Stands in for a module that this system lacks: using it is refused. `what`: the feature that needs the module."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __getattr__(self, name: str) -> NoReturn:
        refuse(f"{self.what} needs file locks of Linux or macOS, which Windows does not have (docs/pools.md)")


def choose(what: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` if it is one of `allowed`, and refuse it otherwise. `what`: the name of the variable or option."""
    allowed = list(allowed)
    if given not in allowed:
        refuse(f"{what}={given} is not known; allowed: {', '.join(allowed)}")
    return given


def whole_number(what: str, given: str, least: int, most: int, unit: str = "") -> int:
    """Return `given` as an integer from `least` to `most`, and refuse it otherwise. `what`: the name of the variable."""
    try:
        number = int(given)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        refuse(f"{what}={given} is not allowed; a whole number from {least} to {most}{unit and ' ' + unit}")
    return number


def why_not_writable(file: Path) -> str:
    """Why a file cannot be created or appended to, in words; empty if it can. Leaves no file behind."""
    try:
        if file.is_dir():
            return "it is a folder"
        if file.is_file():
            file.open("ab").close()
        elif not file.exists():  # a device or a pipe needs no check
            tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
