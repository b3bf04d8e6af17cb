"""`make dev`: a worker on this machine that starts again when code changes; what runs is finished first.

It takes tasks of the stack that the environment names, beside that stack's own workers. With POOL=solo a `breakpoint()` in a
task has the terminal. Source: watchfiles, "run_process".
"""

import os
import sys
from pathlib import Path

from watchfiles import PythonFilter, run_process

from celery_kit.profile import stop_grace

APP = Path(__file__).parent


def main(*options: str) -> None:
    """Run it until Ctrl-C."""
    print(f"watching {APP}; Ctrl-C ends it", file=sys.stderr, flush=True)
    os.environ.setdefault("WORKER_REDIRECT_STDOUTS", "0")  # Celery would make a log line of each answer of a debugger
    words = f"{sys.executable} -m app.worker --hostname dev@%h {' '.join(options)}"
    run_process(APP, target=words, target_type="command", watch_filter=PythonFilter(), sigint_timeout=stop_grace())


if __name__ == "__main__":
    main(*sys.argv[1:])
