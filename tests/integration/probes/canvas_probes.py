"""Tasks for the tests of canvas. What has no result of its own writes a file into the shared folder."""

import json
from pathlib import Path
from typing import Any

from celery import Task, chain, chord, group, shared_task
from celery.canvas import Signature


class CanvasError(Exception):
    """An error of the user's own."""


def note(file: str, what: object) -> None:
    """Leave `what` as JSON in the shared folder; whole, or not there at all."""
    path = Path("/data") / file
    path.with_suffix(".part").write_text(json.dumps(what))
    path.with_suffix(".part").rename(path)


@shared_task
def add(x: int, y: int) -> int:
    return x + y


@shared_task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@shared_task
def fail(text: str) -> None:
    raise CanvasError(text)


@shared_task
def given(*args: Any, **kwargs: Any) -> list[Any]:
    """Its own arguments."""
    return [list(args), kwargs]


@shared_task
def write(value: Any, file: str) -> None:
    """A callback."""
    note(file, value)


@shared_task
def on_error(request: Any, error: Exception, traceback: Any, file: str) -> None:
    """An errback: called with the failed task's request."""
    note(file, {"id": request.id, "error": str(error)})


@shared_task(bind=True)
def parents(self: Task[Any, Any], *_: Any) -> dict[str, Any]:
    return {"id": self.request.id, "parent": self.request.parent_id, "root": self.request.root_id}


@shared_task(bind=True)
def stamps(self: Task[Any, Any]) -> dict[str, Any]:
    return {"stamped": sorted(self.request.stamped_headers or []), "stamps": self.request.stamps}


@shared_task(bind=True)
def header(self: Task[Any, Any], name: str) -> Any:
    return (self.request.headers or {}).get(name)


@shared_task(bind=True)
def eta(self: Task[Any, Any]) -> Any:
    return self.request.eta


@shared_task(bind=True)
def children(self: Task[Any, Any]) -> list[str]:
    """Send one task that belongs to it and one that does not."""
    own = add.delay(1, 1)
    stranger = add.apply_async((2, 2), add_to_parent=False)
    return [str(own.id), str(stranger.id)]


@shared_task
def add_and_write(x: int, y: int, file: str) -> int:
    note(file, x + y)
    return x + y


@shared_task(bind=True)
def replaced(self: Task[Any, Any], x: int, file: str) -> Any:
    return self.replace(add_and_write.s(x, 10, file))


@shared_task(bind=True)
def replaced_by_chain(self: Task[Any, Any], x: int, file: str) -> Any:
    return self.replace(chain(add.s(x, 10), add_and_write.s(100, file)))


@shared_task(bind=True)
def replaced_by_group(self: Task[Any, Any], numbers: list[int]) -> Any:
    return self.replace(group(add.s(n, n) for n in numbers))


@shared_task(bind=True)
def replaced_by_chord(self: Task[Any, Any], numbers: list[int]) -> Any:
    return self.replace(chord([add.s(n, n) for n in numbers], total.s()))


@shared_task(bind=True)
def runs(self: Task[Any, Any], work: dict[str, Any]) -> None:
    """Run a signature that it was given as data."""
    Signature.from_dict(work, app=self.app).apply_async()
