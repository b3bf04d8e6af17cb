"""Sockets that are patched in time: `python -m app.worker` imports this package before its own first line.

Where POOL, or an option on the command line, asks for eventlet or gevent, the patch comes here, before anything else is
imported: both look for locks in all that there is, and eventlet in Celery and kombu for 0.25 s, to say that it cannot mend 42
of those that it finds. `celery worker --pool gevent` has Celery patch, as early as it can.

And while a worker starts nothing is collected, and what is installed is read once. There is no garbage among what it imports,
and to look for some takes a good part of a start's processor time; `celery_kit/worker/start.py` lets it begin. gevent asks 26
times for the plugins of all packages, which is 0.1 s.
"""

import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from itertools import pairwise
from typing import Any

from celery_kit.fixes import needed
from celery_kit.observe import tracing


def _eventlet() -> None:
    if needed("eventlet_import"):
        import_module("celery_kit.fixes.eventlet").eventlet_import()
    import_module("eventlet").monkey_patch()


def _gevent() -> None:
    import_module("gevent.monkey").patch_all()


#: The pools' own table (celery_kit/pools/table.py) imports Celery, which is too late for these two.
#: Pools whose tasks run in the thread that has made their trace: there Celery's own quicker stacks of tasks and requests take a
#: tenth off a quick task. In any other thread a trace has, with them, the stacks of the thread that made it.
QUICK_STACKS = ("solo", "prefork")

PATCHES: dict[str, Callable[[], None]] = {"eventlet": _eventlet, "gevent": _gevent}


def pool(argv: list[str], default: str) -> str:
    """The pool that a worker's command line names; Celery, too, takes the first one."""
    named = (
        following if word in ("-P", "--pool") else word.partition("=")[2]
        for word, following in pairwise([*argv, ""])
        if word in ("-P", "--pool") or word.startswith("--pool=")
    )
    return next(named, default)


def start() -> None:
    """Make this process ready to become a worker."""
    tracing.exporter()  # a worker that cannot trace as it was told does not start
    gc.disable()
    installed = metadata.entry_points()

    def entry_points(**chosen: Any) -> Any:
        return installed.select(**chosen)

    metadata.entry_points = entry_points
    chosen = pool(sys.orig_argv, os.environ.get("POOL") or "prefork")
    # The package alone, of which little is imported yet: it keeps os.write as it is now. In a signal's handler it must not be
    # eventlet's, which ends the worker there (celery/apps/worker.py, safe_say).
    celery: Any = import_module("celery")
    PATCHES.get(chosen, lambda: None)()
    if chosen in QUICK_STACKS:
        os.environ.setdefault("USE_FAST_LOCALS", "1")
    celery.maybe_patch_concurrency(["--pool", chosen])  # what else Celery does for a pool this early


#: The scripts that become a worker.
SCRIPTS = {"app.worker", "celery_kit.operate.worker"}

if SCRIPTS & set(sys.orig_argv):
    start()
