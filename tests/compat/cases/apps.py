"""A plain app and this side's app in one process, on this side's servers."""

import os
import threading
from typing import Any

from celery import Celery, shared_task

from tests.compat.side import app

WAIT = 20
PRIORITIES = [None, *range(10)]


@shared_task(name="compat.whose")
def whose(value: Any) -> Any:
    return value


def _beside() -> Any:
    """An app of plain Celery, as in another module of the process."""
    urls = os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"]
    return Celery("beside", broker=urls[0], backend=urls[1], set_as_current=False)


def _sent(one: Any, queue: str) -> list[Any]:
    """The results of tasks of each priority that `one` sends to a queue. A task that no worker sees has no result."""
    results = [one.send_task("compat.add", (n, 1), queue=queue, priority=priority) for n, priority in enumerate(PRIORITIES)]
    return [result.get(timeout=WAIT) for result in results]


def plain_beside(queue: str) -> list[Any]:
    app.send_task("compat.add", (1, 1)).get(timeout=WAIT)  # open the connections of this side's app first
    return _sent(_beside(), queue)


def each_to(queue: str) -> list[Any]:
    return _sent(app, queue)


def shared_from_a_thread() -> Any:
    """Tasks that threads send without importing the app, like those of a web server."""
    found: list[Any] = []

    def serve() -> None:
        found.append(whose.delay("sent").get(timeout=WAIT))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(WAIT)
    return found
