"""Tasks that are tried again, and messages that come back."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Reject

DATA = Path("/data")


class PassingError(Exception):
    """An error that a later try may not meet."""


class LastingError(PassingError):
    """An error that every try will meet."""


def tries(name: str) -> int:
    """Write down one more try, in the file `name`; gives their number."""
    with (DATA / name).open("a") as file:
        file.write(f"{time.time()}\n")
    return len((DATA / name).read_text().split())


@shared_task(bind=True, autoretry_for=(PassingError,), retry_backoff=1, retry_jitter=False, max_retries=2)
def backs_off(self: Task[Any, Any], name: str) -> int:
    if tries(name) <= 2:
        raise PassingError("not yet")
    return int(self.request.retries)


@shared_task(bind=True, autoretry_for=(PassingError,), dont_autoretry_for=(LastingError,), max_retries=2)
def knows_what_lasts(self: Task[Any, Any], name: str) -> None:
    tries(name)
    raise LastingError(self.request.retries)


@shared_task(bind=True, max_retries=1)
def fails_always(self: Task[Any, Any], name: str, with_its_error: bool = True) -> None:
    error = PassingError(f"try {tries(name)}")
    raise self.retry(exc=error if with_its_error else None, countdown=0)


@shared_task(bind=True)
def retries_later(self: Task[Any, Any], seconds: float, as_eta: bool = False) -> dict[str, Any]:
    """Retried once, after `seconds`; gives how many seconds passed between the two tries, and what the second one knows."""
    request: Any = self.request
    if not request.retries:
        headers: Any = {"first_try": time.time()}
        when = {"eta": datetime.now(UTC) + timedelta(seconds=seconds)} if as_eta else {"countdown": seconds}
        raise self.retry(headers=headers, **when)
    return {"id": request.id, "retries": request.retries, "waited": time.time() - request.first_try}


@shared_task(bind=True)
def counts_down(self: Task[Any, Any], left: int, ids: list[str | None], step: int = 0) -> dict[str, Any]:
    """Retried with other arguments until nothing is left."""
    ids = [*ids, self.request.id]
    if left:
        raise self.retry(args=(left - 1, ids), kwargs={"step": step + 1}, countdown=0)
    return {"ids": ids, "step": step, "retries": self.request.retries}


def delivery(task: Task[Any, Any]) -> dict[str, Any]:
    """What the message says of itself."""
    info: Any = task.request.delivery_info
    return {"id": task.request.id, "redelivered": info["redelivered"]}


@shared_task(bind=True)
def waits_at_the_gate(self: Task[Any, Any], name: str) -> dict[str, Any]:
    """The first delivery waits until its worker is killed, the second ends."""
    if tries(name) == 1:
        time.sleep(60)  # its worker is killed in it; a test that did not would fail, and not hang
    return delivery(self)


@shared_task(bind=True)
def rejects(self: Task[Any, Any], name: str, requeue: bool) -> dict[str, Any]:
    """The first delivery rejects its message."""
    if tries(name) == 1:
        raise Reject("on purpose", requeue=requeue)
    return delivery(self)


@shared_task
def kills_its_process(name: str) -> int:
    """The first delivery kills the process that it runs in."""
    if tries(name) == 1:
        # A container's first process is deaf to a SIGKILL from inside.
        os._exit(1) if os.getpid() == 1 else os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@shared_task(bind=True, max_retries=5)
def where_each_try_ran(self: Task[Any, Any], nodes: list[str]) -> list[str]:
    """Try three times in all; gives the node of each try."""
    nodes = [*nodes, str(self.request.hostname)]
    if len(nodes) < 3:
        raise self.retry(args=(nodes,), countdown=1)
    return nodes
