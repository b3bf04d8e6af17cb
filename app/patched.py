"""Sockets that are patched in time: `python -m app.worker` imports this package before its own first line.

Where POOL, or an option on the command line, asks for eventlet or gevent, Celery's own function patches here, before anything
that uses a socket is imported. `celery worker --pool gevent` has done it by then.

And nothing is collected while a worker starts: there is no garbage among what it imports, and to look for some takes a good
part of a start's processor time. `app/worker.py` lets it begin.
"""

import gc
import os
import sys
from importlib import import_module

import celery

if "app.worker" in sys.orig_argv:
    gc.disable()
    celery.maybe_patch_concurrency([*sys.orig_argv, "--pool", os.environ.get("POOL") or "prefork"])
    # Celery's own name for quicker stacks of tasks and requests: on solo a tenth of a quick task. A green library's local is
    # made anew in each greenlet, and slower than what Celery has by default.
    if import_module("threading").local.__module__ == "_thread":
        os.environ.setdefault("USE_FAST_LOCALS", "1")
