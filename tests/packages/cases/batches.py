"""celery-batches: a task of several messages, each of which gets a result."""

from typing import Any

from celery_batches import Batches

from tests.compat.side import app


@app.task(name="packages.squares", base=Batches, flush_every=4, flush_interval=1)
def squares(requests: Any) -> None:
    for request in requests:
        value = {"square": request.args[0] ** 2, "together": len(requests)}
        app.backend.mark_as_done(request.id, value, request=request)


def by_count() -> Any:
    """As many as make a batch."""
    return [result.get(timeout=20) for result in [squares.delay(number) for number in range(4)]]


def by_time() -> Any:
    """Fewer than that."""
    return [result.get(timeout=20)["square"] for result in [squares.delay(number) for number in range(2)]]
