"""`make dev`: a worker on this machine that restarts when code changes, after its running tasks have finished.

It consumes from the broker of the stack that the environment names, beside that stack's own workers. With POOL=solo, a
`breakpoint()` in a task uses the terminal. Source: watchfiles, "run_process".
"""

import os
import sys

from watchfiles import PythonFilter, run_process

from celery_kit.base.choices import stop_grace
from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.codebase import Codebase


def main(*options: str, codebase: Codebase | None = None) -> None:
    """Run the worker until Ctrl-C. `options`: those of `celery worker`. `codebase`: whose app it runs; None: the app in app/.

    For a codebase, this process changes its working folder and its environment.
    """
    watched = (codebase.source if codebase else ROOT / "app", ROOT / "celery_kit")
    python, script = sys.executable, "app.worker"
    if codebase:
        python, script = codebase.python(), "celery_kit.operate.worker"
        os.environ.update(codebase.here())
        os.chdir(codebase.source)
    print(f"watching {' and '.join(map(str, watched))}; Ctrl-C ends it", file=sys.stderr, flush=True)
    os.environ.setdefault("WORKER_REDIRECT_STDOUTS", "0")  # Celery would log each line that a debugger prints
    words = f"{python} -m {script} --hostname dev@%h {' '.join(options)}"
    run_process(
        *watched,
        target=words,
        target_type="command",
        watch_filter=PythonFilter(extra_extensions=(".lua",)),
        sigint_timeout=stop_grace(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
