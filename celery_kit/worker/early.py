"""The first steps of a worker's start: `python -m app.worker` imports this module before anything else.

Where POOL, or an option on the command line, asks for eventlet or gevent, sockets are patched here, before other modules are
imported. Both search all imported modules for locks; eventlet would search Celery and kombu for 0.25 s, only to report that it
cannot replace 42 of their locks. For `celery worker --pool gevent`, Celery patches as early as it can.

Garbage collection is off while a worker starts: there is no garbage among its imports, and searching for some would take a good
part of the start's CPU time. `celery_kit/worker/start.py` turns it on. The list of installed packages is read once, because
gevent asks 26 times for the plugins of all packages, which takes 0.1 s.
"""

import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from itertools import pairwise

from celery_kit.fixes import needed
from celery_kit.observe import tracing


def _eventlet() -> None:
    if needed("eventlet_import"):
        import_module("celery_kit.fixes.eventlet").eventlet_import()
    import_module("eventlet").monkey_patch()


def _gevent() -> None:
    import_module("gevent.monkey").patch_all()


# These two tables stand here because the table of pools (celery_kit/pools/table.py) imports Celery, which would be too late.
#: Pools whose tasks run in the thread that built their trace function. There Celery's faster stacks of tasks and requests
#: (USE_FAST_LOCALS) take a tenth off a quick task. In another thread, a trace function would use its builder's stacks.
QUICK_STACKS = ("solo", "prefork")

PATCHES: dict[str, Callable[[], None]] = {"eventlet": _eventlet, "gevent": _gevent}


def pool(argv: list[str], default: str) -> str:
    """The pool that a worker's command line names, or `default`. Of several, the first one, as in Celery."""
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

    def entry_points(**chosen: str) -> object:
        return installed.select(**chosen)

    vars(metadata)["entry_points"] = entry_points
    chosen = pool(sys.orig_argv, os.environ.get("POOL") or "prefork")
    # Importing the package, which loads little, saves os.write as it is now. In a signal handler it must not be eventlet's,
    # which would end the worker there (celery/apps/worker.py, safe_say).
    celery = import_module("celery")
    PATCHES.get(chosen, lambda: None)()
    if chosen in QUICK_STACKS:
        os.environ.setdefault("USE_FAST_LOCALS", "1")
    celery.maybe_patch_concurrency(["--pool", chosen])  # Celery's own early steps for a pool


#: The scripts that become a worker.
SCRIPTS = {"app.worker", "celery_kit.operate.worker"}

if SCRIPTS & set(sys.orig_argv):
    start()
