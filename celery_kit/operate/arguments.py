"""A tool's command line."""

import argparse
import re
import sys
from typing import NoReturn

from celery_kit.base.refusals import refuse

#: The options of celery_kit/operate/look/dead.py, which checks them, and those of `make dead`.
OF_DEAD = {
    "retry": "send back to the queue that it came from: an id, or all that are meant",
    "drop": "delete for good: an id, or all that are meant",
    "id": "only this one, with its traceback",
    "task": "only of this task; a pattern such as mail.*",
    "kind": "only of this kind: failed, poison, malformed, unknown, rejected, unsigned",
    "since": "only later ones: a time ago (30m, 12h, 7d), or in ISO 8601",
    "reason": "only those whose reason contains this",
}
#: All remaining arguments, including those that begin with a dash.
REST = argparse.REMAINDER


def standalone() -> bool:
    """Whether this tool was called as `celery-kit`, for the app of any project, which has no Makefile of the kit's."""
    return sys.argv[0].startswith("celery-kit ")


def advice(make: str, elsewhere: str) -> str:
    """What to type next: `make`, or `elsewhere` if the tool was called as `celery-kit`."""
    return elsewhere if standalone() else make


def next_look() -> str:
    """Where to look when a server cannot be reached."""
    return advice("'make ps' shows what runs", "'celery-kit doctor' says what is wrong")


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors of one line and exit code 2. The line breaks of its epilog are preserved."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Refuse the command line with argparse's message, in one line."""
        wrong = re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message)
        said = f"{wrong[1]}={wrong[2]} is not known; allowed: {wrong[3]}" if wrong else message
        refuse(f"{said.replace(chr(39), '')} ({self.prog} --help)")
