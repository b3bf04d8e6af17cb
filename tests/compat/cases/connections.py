"""Clients whose broker or results server has an unusual form of URL."""

import os
from typing import Any

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule

from tests.compat.cases.basics import add
from tests.compat.side import SIDE, app

SECONDS = 20


runs: list[str] = []


def count(key: str) -> int:
    """How often it has run in this process."""
    runs.append(key)
    return len(runs)


if os.environ.get("CLAIMS"):  # a worker without a store for claims does not start with such a task
    from celery_kit.once import once

    counted = app.task(name="compat.counted")(once(count))


def sent() -> list[Any]:
    """The results of tasks, for each of Celery's methods of sending."""
    some = [
        add.delay(1, 1),
        add.apply_async((1, 2), priority=5),
        app.send_task("compat.add", (1, 3)),
        add.apply_async((1, 4), countdown=0.1),
        *[add.delay(1, number) for number in (5, 6)],
    ]
    return [one.get(timeout=SECONDS) for one in some]


def sent_together() -> list[Any]:
    """The results of several tasks that are sent together. Plain Celery sends them one by one."""
    if SIDE == "celery":
        return [add.delay(2, number).get(timeout=SECONDS) for number in range(3)]
    from celery_kit.produce.send import send_many

    return [app.AsyncResult(one).get(timeout=SECONDS) for one in send_many("compat.add", [(2, number) for number in range(3)])]


def sent_by_beat() -> Any:
    """The result of a task that beat sends."""
    beat = Scheduler(app=app, lazy=True)
    entry = ScheduleEntry(name="add", task="compat.add", args=(3, 3), schedule=schedule(1.0), app=app)
    return beat.apply_async(entry, producer=beat.producer).get(timeout=SECONDS)


def workers_answer() -> list[str]:
    """The answers of this queue's workers to a ping."""
    answers = app.control.ping(timeout=3)
    return [answer["ok"] for each in answers for answer in each.values()]


def claimed() -> list[Any]:
    """The results of a task with `@once` that is sent twice."""
    return [counted.delay("key").get(timeout=SECONDS) for _ in range(2)]


def sent_to(queue: str) -> Any:
    """The result of a task that is sent to its own queue."""
    try:
        return add.apply_async((4, 4), queue=queue).get(timeout=SECONDS)
    except Exception as error:
        return {"raised": type(error).__name__, "notes": getattr(error, "__notes__", [])}
