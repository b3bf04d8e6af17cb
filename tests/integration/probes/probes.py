"""Tasks for the tests, dropped into a worker's `app/tasks/` from outside: that alone registers them."""

import socket
from typing import Any

from celery import Task, shared_task


class ProbeError(Exception):
    """An error of the user's own."""


@shared_task
def fail(text: str) -> None:
    raise ProbeError(text)


@shared_task(bind=True, max_retries=3)
def succeed_at_attempt(self: Task[Any, Any], attempt: int) -> int:
    if self.request.retries + 1 < attempt:
        raise self.retry(exc=ProbeError("not yet"), countdown=0.5)
    return self.request.retries + 1


@shared_task
def add(x: int, y: int) -> int:
    return x + y


@shared_task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@shared_task
def socket_module() -> str:
    """The module that sockets come from: the standard library's, or that of a pool's patch."""
    return socket.socket.__module__
