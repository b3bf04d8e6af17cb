"""Show the table of `status` and refresh it: `make top`, `celery-kit top`."""

import sys
import time
from collections.abc import Callable
from typing import NoReturn

from rich.live import Live
from rich.text import Text

from celery_kit.operate.arguments import Parser
from celery_kit.operate.look import status

EVERY = 2.0  # seconds


def show(every: float, take: Callable[[], status.Snapshot] = status.snapshot) -> NoReturn:
    """Draw the snapshot that `take` returns, every `every` seconds until Ctrl-C."""
    with Live(screen=sys.stdout.isatty(), auto_refresh=False) as live:
        while True:
            live.update(Text("\n".join(status.lines(take()))), refresh=True)
            time.sleep(every)


def main() -> None:
    """Show the table until Ctrl-C, at most five times a second."""
    parser = Parser(description="Show broker, queues and workers, until Ctrl-C.")
    parser.add_argument("--every", type=float, default=EVERY, metavar="SECONDS")
    given = parser.parse_args()
    show(max(0.2, given.every))


if __name__ == "__main__":
    main()
