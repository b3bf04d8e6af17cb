"""Tasks for `test_wire.py`: what arrives in a worker, as it arrives."""

import hashlib
import json
from pathlib import Path
from typing import Any

from celery import Task, shared_task


class Parcel:
    """A class of the user's own: only pickle carries it."""

    def __init__(self, what: str) -> None:
        self.what = what


@shared_task
def same(value: Any) -> Any:
    return value


@shared_task
def seen(value: Any) -> list[str]:
    """The type and a fingerprint of what arrived, which every serializer can carry back."""
    return [type(value).__name__, hashlib.sha256(repr(value).encode()).hexdigest()]


@shared_task
def unpack(parcel: Parcel) -> Parcel:
    return Parcel(parcel.what.upper())


def _request(task: Task[Any, Any]) -> dict[str, Any]:
    names = (
        "id",
        "root_id",
        "parent_id",
        "correlation_id",
        "headers",
        "origin",
        "retries",
        "timelimit",
        "argsrepr",
        "kwargsrepr",
    )
    return {"task": task.name} | {name: task.request.get(name) for name in names}


@shared_task(bind=True)
def request(self: Task[Any, Any], *_: Any, **__: Any) -> dict[str, Any]:
    return _request(self)


@shared_task(bind=True, max_retries=1)
def request_of_retry(self: Task[Any, Any]) -> dict[str, Any]:
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return _request(self)


@shared_task(bind=True)
def parent(self: Task[Any, Any]) -> dict[str, Any]:
    child.delay()
    return _request(self)


@shared_task(bind=True)
def child(self: Task[Any, Any]) -> None:
    """Leaves its request in a file: no process but its sender's could read its result everywhere."""
    Path(f"/data/child-of-{self.request.parent_id}.new").write_text(json.dumps(_request(self)))
    Path(f"/data/child-of-{self.request.parent_id}.new").rename(f"/data/child-of-{self.request.parent_id}.json")
