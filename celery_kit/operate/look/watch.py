"""Follow one task to its end, with a bar where it says how far it is. `python -m celery_kit.operate.look.watch ID`, `make
result ID=… WATCH=1`.
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
    """Draw it until it ends; gives what came of it. Ctrl-C ends the watching, not the task."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task(task_id, total=None, done="")
        while (now := look_up(task_id)).state not in states.READY_STATES:
            said = now.progress or {}
            current, total = said.get("current"), said.get("total")
            text = said.get("text") or WORDS.get(now.state, now.state)
            done = f"{current:g}/{total:g}" if current is not None and total else ""
            progress.update(bar, completed=current, total=total, description=f"{task_id[:8]} {text}", done=done)
            time.sleep(EVERY)
        progress.update(bar, completed=1, total=1, description=f"{task_id[:8]} {now.state}", done="")
    return now


def main() -> None:
    parser = Parser(description="Follow a task to its end, with a bar where it says how far it is.")
    parser.add_argument("id")
    given = parser.parse_args()
    refuse_where_unreadable()
    end = watch(given.id)
    show_outcome(end)
    sys.exit(end.state != states.SUCCESS)


if __name__ == "__main__":
    main()
