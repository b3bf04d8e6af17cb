"""Start the worker that the environment describes: `python -m app.worker [options of celery worker]`.

This process itself becomes the worker, so that PID 1 of a container gets the worker's signals. `celery_kit/worker/early.py` has
patched its sockets by then.
"""

import gc
import os
import sys

from celery import Celery, maybe_patch_concurrency
from celery import __main__ as celery
from celery.bin.base import CLIContext
from celery.bin.worker import worker
from celery.signals import celeryd_after_setup

from celery_kit.base.refusals import choose
from celery_kit.pools.table import POOLS, Pool

#: What `celery -A` is given: the module whose app is the one that CELERY_APP names, as an app of the kit.
APP = "celery_kit.operate.target"


def command(pool: Pool, options: list[str], banner: bool = True, python: str = sys.executable) -> list[str]:
    """The command line of a worker on `pool`. `options` come last and override the others. `python`: its interpreter."""
    start = [python, "-m", "celery", "-A", APP, *([] if banner else ["--quiet"])]
    return [*start, "worker", "--pool", pool.name, *pool.worker_flags, *options]


def _collect(**_: object) -> None:
    """Turn garbage collection on, but not for what exists by now: prefork's children can share that memory."""
    gc.freeze()
    gc.enable()


def main(app: Celery) -> None:
    """Become a worker of `app`, on the pool of POOL. Does not return."""
    celeryd_after_setup.connect(_collect, weak=False)
    pool = POOLS[choose("POOL", os.environ.get("POOL") or "prefork", POOLS)]
    options = ["--loglevel", os.environ.get("LOGLEVEL") or "INFO", *sys.argv[1:]]
    banner = app.conf.log_format == "text"
    argv = command(pool, options, banner=banner)
    sys.argv[:] = [celery.__file__, *argv[3:]]
    if app.user_options.get("preload"):  # options that stand before the command's name need Celery's whole command line
        celery.main()
    # The worker command alone. Celery's group of commands would import all others, among them a shell with an editor.
    maybe_patch_concurrency()
    worker.params.extend(app.user_options.get("worker", ()))
    context = CLIContext(app=app, no_color=False, workdir=None, quiet=not banner)
    worker.main(sys.argv[sys.argv.index("worker") + 1 :], "celery worker", obj=context, auto_envvar_prefix="CELERY_WORKER")
