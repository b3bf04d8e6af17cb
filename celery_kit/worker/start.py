"""Start a worker from what the environment chooses: `python -m app.worker [options of celery worker]`.

This process becomes the worker: PID 1 of a container gets the worker's signals. `celery_kit/worker/early.py` has patched its
sockets.
"""

import gc
import os
import sys
from typing import Any

from celery import __main__ as celery
from celery import maybe_patch_concurrency
from celery.bin.base import CLIContext
from celery.bin.worker import worker
from celery.signals import celeryd_after_setup

from celery_kit.base.refusals import choose
from celery_kit.pools.table import POOLS, Pool

#: What `celery -A` is given: the module whose app is the one that CELERY_APP names, as an app of the kit.
APP = "celery_kit.operate.target"


def command(pool: Pool, options: list[str], banner: bool = True, python: str = sys.executable) -> list[str]:
    """The command line of a worker on `pool`. `options` come last and win."""
    start = [python, "-m", "celery", "-A", APP, *([] if banner else ["--quiet"])]
    return [*start, "worker", "--pool", pool.name, *pool.worker_flags, *options]


def _collect(**_: Any) -> None:
    """Have garbage collected from now on, and what there is by now left alone: prefork's children go on sharing its memory."""
    gc.freeze()
    gc.enable()


def main(app: Any) -> None:
    """Become a worker of `app`, on the pool of POOL."""
    celeryd_after_setup.connect(_collect, weak=False)
    pool = POOLS[choose("POOL", os.environ.get("POOL") or "prefork", POOLS)]
    options = ["--loglevel", os.environ.get("LOGLEVEL") or "INFO", *sys.argv[1:]]
    banner = app.conf.log_format == "text"
    argv = command(pool, options, banner=banner)
    sys.argv[:] = [celery.__file__, *argv[3:]]
    if app.user_options.get("preload"):  # options that go before the command's name: Celery's whole command line
        celery.main()
    # The one command alone: its siblings, among them a shell with an editor, would all be imported.
    maybe_patch_concurrency()
    worker.params.extend(app.user_options.get("worker", ()))
    context = CLIContext(app=app, no_color=False, workdir=None, quiet=not banner)
    worker.main(sys.argv[sys.argv.index("worker") + 1 :], "celery worker", obj=context, auto_envvar_prefix="CELERY_WORKER")
