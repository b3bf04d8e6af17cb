"""Sockets that are patched in time: `python -m app.worker` imports this package before its own first line.

Where POOL, or an option on the command line, asks for eventlet or gevent, Celery's own function patches here, before anything
that uses a socket is imported. `celery worker --pool gevent` has done it by then.
"""

import os
import sys

import celery

if "app.worker" in sys.orig_argv:
    celery.maybe_patch_concurrency([*sys.orig_argv, "--pool", os.environ.get("POOL") or "prefork"])
