"""Show a task's state and result: `python -m celery_kit.operate.look.result ID`, `make result`."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict

from celery.exceptions import TimeoutError as ResultTimeout
from kombu.exceptions import DecodeError

from celery_kit.base.messages import plain
from celery_kit.base.refusals import refuse
from celery_kit.base.types import AnyResult
from celery_kit.operate.arguments import Parser, next_look
from celery_kit.operate.target import app
from celery_kit.results import room
from celery_kit.results.outcome import Outcome, forget, outcome

#: Characters of an error that a refusal repeats.
MOST_SHOWN = 100
#: What reading a stored result raises that is none of Celery's.
UNREADABLE = (DecodeError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def awaited(result: AnyResult, wait: float | None = None) -> Outcome:
    """An outcome, after waiting for it up to `wait` seconds."""
    if wait is not None:
        with suppress(ResultTimeout):
            result.get(timeout=wait, propagate=False)
    return outcome(result)


def show(result: AnyResult, wait: float | None = None, as_json: bool = False) -> None:
    """Print an outcome, after waiting for it up to `wait` seconds."""
    found = awaited(result, wait)
    if as_json:
        print(json.dumps(asdict(found), default=repr))
    else:
        show_outcome(found)


def show_outcome(found: Outcome) -> None:
    """Print an outcome in lines, for a terminal."""
    fields = {"state": found.state, "value": json.dumps(found.value, default=repr, ensure_ascii=False)}
    if found.state != "SUCCESS":
        del fields["value"]
    if found.progress:
        fields["progress"] = " ".join(f"{name}={value}" for name, value in found.progress.items())
    for name, text in (fields | {"error": found.error, "done": found.done, "traceback": found.traceback}).items():
        if text:
            shown = plain(text, kept="\n\t")
            print(f"{name:<10}{shown}")
    if found.state == "PENDING":
        print("          waiting for a worker, or not known: never sent, expired, or forgotten")


def refuse_where_unreadable() -> None:
    """Refuse a result backend whose results only their sender can read."""
    backend = room(app.conf.result_backend)
    if backend and not backend.read_elsewhere:
        refuse(
            f"BACKEND={backend.name} gives a result only to the process that sent the task: "
            "send it with WAIT=10, or use BACKEND=redis"
        )


def main() -> None:
    """Show or delete a result."""
    parser = Parser(description="Show a task's state and result.")
    parser.add_argument("id")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="wait this long for the task to end")
    parser.add_argument("--forget", action="store_true", help="delete the result")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    given = parser.parse_args()

    refuse_where_unreadable()
    app.conf.result_backend_always_retry = False  # do not retry: a person waits for the error
    try:
        if given.forget:
            forget(given.id)
        show(app.AsyncResult(given.id), given.wait, given.json)
    except (*getattr(app.backend, "connection_errors", ()), ConnectionError) as error:
        refuse(f"the results server cannot be reached ({error}); {next_look()}")
    except UNREADABLE as error:
        refuse(
            f"what is stored for ID={plain(given.id)} is no result ({type(error).__name__}: {plain(str(error))[:MOST_SHOWN]})"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
