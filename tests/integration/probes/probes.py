"""Tasks for the tests, dropped into a worker's `app/tasks/` from outside: that alone registers them."""

from celery import shared_task


class ProbeError(Exception):
    """An error of the user's own."""


@shared_task
def fail(text: str) -> None:
    raise ProbeError(text)


@shared_task
def add(x: int, y: int) -> int:
    return x + y
