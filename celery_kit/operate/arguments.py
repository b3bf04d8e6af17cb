"""A tool's command line."""

import argparse
import re
import sys
from typing import NoReturn

from celery_kit.base.refusals import refuse

#: All that follows, whatever it begins with.
REST = argparse.REMAINDER


def advice(make: str, elsewhere: str) -> str:
    """What to type next: in this repository `make …`; the other where the tool was called as `celery-kit`."""
    return elsewhere if sys.argv[0].startswith("celery-kit ") else make


def next_look() -> str:
    """Where to look when a server cannot be reached."""
    return advice("'make ps' shows what runs", "'celery-kit doctor' says what is wrong")


class Parser(argparse.ArgumentParser):
    """argparse's, which says what is wrong in one line, and nothing else. Its epilog keeps its lines."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        wrong = re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message)
        said = f"{wrong[1]}={wrong[2]} is not known; allowed: {wrong[3]}" if wrong else message
        refuse(f"{said.replace(chr(39), '')} ({self.prog} --help)")
