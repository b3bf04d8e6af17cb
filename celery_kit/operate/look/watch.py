"""Follow one task until it ends: `python -m celery_kit.operate.look.watch ID`, `make result ID=… WATCH=1`.

A task that reports its progress has a progress bar.
"""

import sys
import time

from celery import states
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from celery_kit.operate.arguments import Parser
from celery_kit.operate.look.result import refuse_where_unreadable, show_outcome
from celery_kit.results.outcome import Outcome, look_up

EVERY = 0.2  # seconds
WORDS = {states.PENDING: "waits, or is not known", states.STARTED: "runs", states.RETRY: "will be tried again"}


def watch(task_id: str) -> Outcome:
    """Draw a task's state until it ends, and return its outcome. Ctrl-C stops the drawing, not the task."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(task_id, total=None, done="")
        while (now := look_up(task_id)).state not in states.READY_STATES:
            progressed = now.progress or {}
            current, total = progressed.get("current"), progressed.get("total")
            text = progressed.get("text") or WORDS.get(now.state, now.state)
            done = f"{current:g}/{total:g}" if current is not None and total else ""
            progress.update(bar, completed=current, total=total, description=f"{task_id[:8]} {text}", done=done)
            time.sleep(EVERY)
        progress.update(bar, completed=1, total=1, description=f"{task_id[:8]} {now.state}", done="")
    return now


def main() -> None:
    """Watch a task. Exits with 1 unless it succeeds."""
    parser = Parser(description="Follow a task until it ends, with a bar for one that reports its progress.")
    parser.add_argument("id")
    given = parser.parse_args()
    refuse_where_unreadable()
    end = watch(given.id)
    show_outcome(end)
    sys.exit(end.state != states.SUCCESS)


if __name__ == "__main__":
    main()
