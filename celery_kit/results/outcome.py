"""Look results up by their ids, from any process."""

from dataclasses import dataclass

from celery_kit.base import target
from celery_kit.base.messages import PROGRESS
from celery_kit.base.types import AnyResult, Headers


@dataclass(frozen=True)
class Outcome:
    """What is known of one task. `state` is Celery's; PENDING also means: never sent, expired, or forgotten."""

    id: str
    state: str
    value: object = None
    error: str | None = None
    traceback: str | None = None
    done: str | None = None  # ISO 8601, UTC
    progress: Headers | None = None  # what a running task reports (celery_kit/progress.py)


def look_up(task_id: str) -> Outcome:
    """The state of a task, and its value (SUCCESS) or error (FAILURE, RETRY). Does not wait. Raises the backend's errors."""
    return outcome(target.current().AsyncResult(task_id))


def outcome(result: AnyResult) -> Outcome:
    """The current state of `result`. Does not wait."""
    state, value, traceback = result.state, result.result, result.traceback
    done = result.date_done.isoformat() if result.date_done else None
    if isinstance(value, BaseException):
        return Outcome(result.id, state, None, f"{type(value).__name__}: {value}", traceback and str(traceback), done)
    if state == PROGRESS:
        return Outcome(result.id, state, progress=value if isinstance(value, dict) else {"text": value})
    return Outcome(result.id, state, value if state == "SUCCESS" else None, None, None, done)


def forget(task_id: str) -> None:
    """Delete a result from the results server."""
    target.current().AsyncResult(task_id).forget()
