"""Tasks about the way of a task: states, values, errors, ids."""

import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task

DATA = Path("/data")


class OddNumberError(Exception):
    """An error of the user's own, with two arguments."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(number, text)
        self.number = number


class LeavesATrace(Task):  # type: ignore[type-arg]  # before Celery 5.7 it is no generic class
    """Writes a file once all is done, the result's storage included."""

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        (DATA / f"{task_id}.returned").write_text(status)


@shared_task
def add(x: int, y: int) -> int:
    return x + y


@shared_task
def give(value: Any) -> Any:
    return value


@shared_task(bind=True)
def pass_the_gate(self: "Task[Any, Any]", gate: str) -> str:
    """Wait until somebody makes the file `gate`."""
    (DATA / f"{gate}.reached").touch()
    for _ in range(600):
        if (DATA / gate).exists():
            return "through"
        time.sleep(0.05)  # between two looks for a file of the test, in the worker's container; it ends after a while
    raise TimeoutError(gate)


@shared_task
def refuse_odd(number: int) -> int:
    if number % 2:
        raise OddNumberError(number, "odd")
    return number


@shared_task(base=LeavesATrace, ignore_result=True)
def forget_me(x: int, y: int) -> int:
    return x + y


@shared_task(base=LeavesATrace)
def keep_me(x: int, y: int) -> int:
    return x + y


@shared_task(bind=True)
def ids(self: "Task[Any, Any]", file: str | None = None) -> dict[str, Any]:
    """What the task knows of itself and of where it comes from."""
    request = self.request
    known = {"id": request.id, "root": request.root_id, "parent": request.parent_id}
    if file:
        (DATA / file).write_text(" ".join(map(str, known.values())))
    return known


@shared_task(bind=True)
def ids_of_a_child(self: "Task[Any, Any]") -> dict[str, Any]:
    """The same, and a child that writes down what it knows."""
    child = ids.delay(f"{self.request.id}.child")
    return {"id": self.request.id, "root": self.request.root_id, "parent": self.request.parent_id, "child": child.id}
