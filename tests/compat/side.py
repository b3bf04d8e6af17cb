"""One app for three sides, chosen by SIDE: plain Celery (`celery`), and the kit on either engine (`plain`, `fast`).

A worker is `celery -A tests.compat.side worker`; its tasks are the modules of `tests/compat/cases/`, or of the package CASES
the one that CASE names. A client is
`python -m tests.compat.side MODULE:FUNCTION [ARGUMENTS as JSON]`: it calls a function of such a module and prints, as JSON,
what that gave, or the error that it raised.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

SIDE = os.environ["SIDE"]
CASES = os.environ.get("CASES") or "tests.compat.cases"

if patched := os.environ.get("PATCHED"):  # a client of gevent or eventlet
    module, function = {"gevent": ("gevent.monkey", "patch_all"), "eventlet": ("eventlet", "monkey_patch")}[patched]
    getattr(import_module(module), function)()

app: Any
if SIDE == "celery":
    from celery import Celery

    app = Celery("compat", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
    # Late acknowledgement, as in the kit, and as plain Celery's users have it who must not lose tasks.
    app.conf.update(
        task_acks_late=True,
        task_track_started=True,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        task_default_queue=os.environ["QUEUE"],
    )
    app.set_default()
else:
    from app import app

    app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.update(json.loads(os.environ.get("SETTINGS") or "{}"))
cases = os.environ.get("CASE") or " ".join(one.name for one in iter_modules([str(Path(__file__).with_name("cases"))]))
app.conf.imports = [f"{CASES}.{name}" for name in cases.split()]


def main(where: str, *arguments: str) -> None:
    module, _, name = where.partition(":")
    app.loader.import_default_modules()
    try:
        outcome: dict[str, Any] = {"gave": getattr(import_module(f"{CASES}.{module}"), name)(*map(json.loads, arguments))}
    except Exception as error:
        outcome = {"raised": type(error).__name__, "says": str(error)}
    print("\n" + json.dumps(outcome, default=repr), flush=True)
    os._exit(0)  # do not wait for threads or connections: the test has its answer


if __name__ == "__main__":
    # Imported by its own name, because the cases import `app` from here.
    sys.modules["tests.compat.side"] = sys.modules["__main__"]
    main(*sys.argv[1:])
