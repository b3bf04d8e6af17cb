"""A tool's command line."""

import argparse
import re
from typing import NoReturn

from celery_kit.base.refusals import refuse

#: All that follows, whatever it begins with.
REST = argparse.REMAINDER


class Parser(argparse.ArgumentParser):
    """argparse's, which says what is wrong in one line, and nothing else. Its epilog keeps its lines."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        wrong = re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message)
        said = f"{wrong[1]}={wrong[2]} is not known; allowed: {wrong[3]}" if wrong else message
        refuse(f"{said.replace(chr(39), '')} ({self.prog} --help)")
