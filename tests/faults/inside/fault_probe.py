"""The task of the fault suite, mounted into workers: into the kit's `app/tasks/`, and beside plain Celery's module.

It logs to a file, independently of Celery: a line at its begin and a line at its end. Each is one write to a file opened for
appending, so that lines of several processes never mix (POSIX, write and O_APPEND).
"""

import os
import time
from importlib import import_module
from typing import Any

from celery import current_app, shared_task, signals

# Plain Celery has no `@once`.
once: Any = import_module("celery_kit.once").once if __name__.startswith("app.") else lambda **_: lambda function: function

FOLDER = os.environ.get("EFFECTS") or "/data"

# Plain Celery's visibility timeout: hours in production, and short here, so that a test can wait for it.
if os.environ.get("RESTORE_AFTER"):
    current_app.conf.broker_transport_options = {
        **(current_app.conf.broker_transport_options or {}),
        "visibility_timeout": int(os.environ["RESTORE_AFTER"]),
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
    }
if os.environ.get("SOFT_SHUTDOWN"):
    current_app.conf.worker_soft_shutdown_timeout = float(os.environ["SOFT_SHUTDOWN"])
if os.environ.get("TICKS"):
    current_app.conf.beat_schedule = {"tick": {"task": "faults.effect", "schedule": 1.0, "args": (0.0, "tick")}}


def note(*words: object) -> None:
    # The monotonic clock is the same in all containers, and does not change when a fault sets the wall clock.
    line = " ".join(str(word) for word in (*words, f"{time.monotonic():.3f}")) + "\n"
    file = os.open(f"{FOLDER}/effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@signals.worker_ready.connect(weak=False)
def ready(sender: Any, **_: Any) -> None:
    note("ready", "-", sender.hostname)


def take(task: Any, seconds: float, kind: str) -> str:
    """Run for `seconds`, in short steps, so that a signal can end it. Returns the task's id."""
    note("begin", task.request.id, task.request.hostname, kind)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))  # the work, in steps: an exception that ends the task reaches a thread between two of them
    note("end", task.request.id, task.request.hostname, kind)
    return str(task.request.id)


@shared_task(name="faults.effect", bind=True)
def effect(self: Any, seconds: float, kind: str = "task") -> str:
    return take(self, seconds, kind)


@shared_task(name="faults.effect_once", bind=True)
@once(key="message", lease=10)
def effect_once(self: Any, seconds: float) -> str:
    return take(self, seconds, "once")


@shared_task(name="faults.wait", bind=True)
def wait(self: Any, seconds: float) -> None:
    """One call that waits."""
    note("begin", self.request.id, self.request.hostname, "task")
    time.sleep(seconds)  # the work: as long as the fault requires
    note("end", self.request.id, self.request.hostname, "task")


def first(task: Any) -> bool:
    """Whether this is a task's first run: a file in the worker's folder tells."""
    try:
        os.close(os.open(f"{FOLDER}/first.{task.request.id}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@shared_task(name="faults.first_long", bind=True)
def first_long(self: Any, seconds: float) -> str:
    """Take `seconds` at the first run, and no time when another worker runs it again."""
    return take(self, seconds if first(self) else 0.0, "task")


@shared_task(name="faults.hog", bind=True)
def hog(self: Any) -> str:
    """Allocate memory until the kernel kills the process, at the first run."""
    note("begin", self.request.id, self.request.hostname, "hog")
    held: list[bytes] = []
    if not first(self):
        note("end", self.request.id, self.request.hostname, "hog")
        return str(self.request.id)
    while True:
        held.append(b"x" * 8_000_000)
