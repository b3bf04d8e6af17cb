"""celery-singleton: a task that waits or runs is not sent again."""

import os
import time
from typing import Any

from celery_singleton import Singleton

from tests.compat.side import app
from tests.harness.waiting import until

app.conf.singleton_backend_url = os.environ["LOCKS"]
app.conf.singleton_key_prefix = os.environ["QUEUE"]


@app.task(name="packages.alone", base=Singleton)
def alone(word: str, seconds: float = 1.0) -> str:
    time.sleep(seconds)  # the work
    return word


def sent() -> Any:
    first, second, other = alone.delay("a"), alone.delay("a"), alone.delay("b")
    facts = {"second is the first": second.id == first.id, "another is its own": other.id != first.id}
    facts["value"] = second.get(timeout=20)
    until("the lock is released", lambda: alone.delay("a", 1.0).id != first.id, 10)
    return facts
