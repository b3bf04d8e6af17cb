"""Tasks for every worker that listens. BROADCAST names their queue in the processes that have it configured."""

import os
from collections.abc import Callable
from typing import Any

from celery.backends.redis import RedisBackend
from kombu.common import Broadcast

from tests.compat.side import SIDE, app
from tests.harness.waiting import settled

if name := os.environ.get("BROADCAST"):
    app.conf.task_queues = (Broadcast(name),)


def _notes() -> Any:
    return RedisBackend(app=app, url=os.environ["NOTES"]).client


@app.task(name="compat.hear", ignore_result=True)
def hear(key: str) -> None:
    _notes().sadd(key, os.getpid())


def _send_many(key: str, to: str) -> None:
    if SIDE == "celery":
        hear.apply_async([key], queue=to)
    else:
        from celery_kit.produce.bulk import Sender, calls

        with app.producer_or_acquire() as producer:
            Sender(app, hear, {"queue": to}, producer).send(calls([[key]]))


WAYS: dict[str, Callable[[str, str], Any]] = {
    "queue": lambda key, to: hear.apply_async([key], queue=to),
    "headers": lambda key, to: hear.apply_async([key], queue=to, headers={"x": 1}),  # which no plan is made for
    "by name": lambda key, to: app.send_task(hear.name, [key], queue=to),
    "exchange": lambda key, to: app.send_task(hear.name, [key], exchange=to, routing_key=os.environ["QUEUE"]),
    "many": _send_many,
}


def heard(ways: list[str], to: str, workers: int, times: int = 2) -> Any:
    """How many workers receive a task, for each method of sending. The kit may build the second message from the first."""
    keys = {f"{way} {number}": f"{to} {way} {number}" for way in ways for number in range(times)}
    for shown, key in keys.items():
        WAYS[shown.rpartition(" ")[0]](key, to)
    notes = _notes()
    return settled(
        lambda: {shown: notes.scard(key) for shown, key in keys.items()}, lambda found: set(found.values()) == {workers}, 10
    )
