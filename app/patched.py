"""Sockets that are patched in time: `python -m app.worker` imports this package before its own first line.

Where POOL, or an option on the command line, asks for eventlet or gevent, Celery's own function patches here, before anything
that uses a socket is imported. `celery worker --pool gevent` has done it by then.

And nothing is collected while a worker starts: there is no garbage among what it imports, and to look for some takes a good
part of a start's processor time. `app/worker.py` lets it begin.
"""

import gc
import os
import sys

import celery

if "app.worker" in sys.orig_argv:
    gc.disable()
    celery.maybe_patch_concurrency([*sys.orig_argv, "--pool", os.environ.get("POOL") or "prefork"])
