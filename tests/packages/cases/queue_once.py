"""celery-once: a task that waits or runs cannot be sent again."""

import os
import time
from typing import Any

from celery_once import AlreadyQueued, QueueOnce

from tests.compat.side import app
from tests.harness.waiting import until

app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": {"url": os.environ["LOCKS"], "default_timeout": 60}}


@app.task(name=f"packages.once.{os.environ['QUEUE']}", base=QueueOnce)
def alone(word: str, seconds: float = 1.0) -> str:
    time.sleep(seconds)  # the work
    return word


def _is_refused(word: str) -> bool:
    try:
        alone.delay(word)
    except AlreadyQueued:
        return True
    return False


def sent() -> Any:
    first = alone.delay("a")
    facts = {"second": _is_refused("a"), "graceful": alone.apply_async(("a",), once={"graceful": True}).state}
    facts["value"] = first.get(timeout=20)
    until("the lock is released", lambda: not _is_refused("a"), 10)
    return facts
