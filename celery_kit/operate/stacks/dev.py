"""`make dev`: a worker on this machine that starts again when code changes; what runs is finished first.

It takes tasks of the stack that the environment names, beside that stack's own workers. With POOL=solo a `breakpoint()` in a
task has the terminal. Source: watchfiles, "run_process".
"""

import os
import sys

from watchfiles import PythonFilter, run_process

from celery_kit.base.choices import stop_grace
from celery_kit.base.target import ROOT

WATCHED = (ROOT / "app", ROOT / "celery_kit")


def main(*options: str) -> None:
    """Run it until Ctrl-C."""
    print(f"watching {' and '.join(map(str, WATCHED))}; Ctrl-C ends it", file=sys.stderr, flush=True)
    os.environ.setdefault("WORKER_REDIRECT_STDOUTS", "0")  # Celery would make a log line of each answer of a debugger
    words = f"{sys.executable} -m app.worker --hostname dev@%h {' '.join(options)}"
    run_process(
        *WATCHED,
        target=words,
        target_type="command",
        watch_filter=PythonFilter(extra_extensions=(".lua",)),
        sigint_timeout=stop_grace(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
