"""Send a task from a shell: `python -m celery_kit.operate.look.send TASK [ARGS] [KWARGS]`, `make send`."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import NoReturn, TypeVar

from celery.exceptions import OperationalError

from celery_kit.base import target
from celery_kit.base.facts import address
from celery_kit.base.messages import plain
from celery_kit.base.refusals import choose, refuse
from celery_kit.base.sizes import too_large
from celery_kit.brokers import explained
from celery_kit.operate.arguments import Parser, advice, next_look
from celery_kit.operate.target import app
from celery_kit.produce.alike import check_arguments
from celery_kit.produce.send import send, tasks

#: Characters of wrong input that a refusal repeats.
MOST_SHOWN = 100
Value = TypeVar("Value", list[object], dict[str, object])


def main() -> None:
    """Send a task, or forward the spool."""
    parser = Parser(description="Send a task; prints its id.")
    parser.add_argument("task", help="its name; or `forward`, to send what waits in the spool (docs/spool.md)")
    parser.add_argument("args", nargs="?", default="[]", help="a JSON array; or -, to read one JSON array a line")
    parser.add_argument("kwargs", nargs="?", default="{}", help="a JSON object")
    parser.add_argument("--countdown", type=float, help="seconds from now")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="wait this long for the result, and print it")
    parser.add_argument("--json", action="store_true", help="one JSON object (docs/json.md)")
    given = parser.parse_args()
    if given.task == "forward":
        forward()
    else:
        _send(given)


def _send(given: argparse.Namespace) -> None:
    if not hasattr(type(app), "spooled"):  # the value itself may raise
        refuse(f"CELERY_APP={target.name()} is plain Celery: only an app of the kit, by Kit() or install(), is sent to")
    choose("TASK", given.task, sorted(name for name in tasks() if not name.startswith("celery.")))
    kwargs = _json("KWARGS", given.kwargs, dict)
    lines = sys.stdin if given.args == "-" else [given.args]
    calls = [_json("ARGS", line, list) for line in lines if line.strip()]
    for args in calls:
        _check_arguments(given.task, args, kwargs)

    sent: list[dict[str, object]] = []
    try:
        for args in calls:
            result = send(given.task, args, kwargs, countdown=given.countdown)
            sent.append({"id": result.id, "result": None})
            if not given.json:
                print(result.id, flush=True)
            if given.wait is not None:
                from celery_kit.operate.look.result import awaited, show  # only with --wait

                if given.json:
                    sent[-1]["result"] = asdict(awaited(result, given.wait))
                else:
                    show(result, given.wait)
    except (OperationalError, ConnectionError) as error:
        _unavailable(error)
    except app.connection().channel_errors as error:
        refuse(explained(app, error) or f"the broker refuses the task: {error}")
    except OSError as error:
        _unusable(error)
    if given.json:
        print(json.dumps({"sent": sent}, default=repr))
    if app.spooled and app.spooled.spool.names():
        how = advice("make forward", "celery-kit send forward")
        print(f"celery-kit: the broker is unavailable; tasks wait in {app.conf.spool}: '{how}' sends them", file=sys.stderr)


def forward() -> None:
    """Send the tasks in the spool, and print their ids. Refuses if some cannot be sent."""
    tasks()
    try:
        if not app.spooled:
            refuse("SPOOL is not set: there is no directory to forward tasks from")
        for task_id in app.spooled.forward():
            print(task_id, flush=True)
    except (OperationalError, ConnectionError) as error:
        _unavailable(error)
    except OSError as error:
        _unusable(error)
    if rest := len([*app.spooled.spool.names(), *app.spooled.spool.bad()]):
        refuse(f"{rest} tasks stay in {app.conf.spool}: another process is sending them, or a line above says why not")


def _unusable(error: OSError) -> NoReturn:
    refuse(f"SPOOL={app.conf.spool} cannot be used: {error.strerror}")


def _unavailable(error: Exception) -> NoReturn:
    refuse(f"the broker at {address(app)} cannot be reached ({error}); {next_look()}")


def _json(what: str, text: str, kind: type[Value]) -> Value:
    shapes: dict[type, str] = {list: 'an array, such as \'["a@b.c", "hi"]\'', dict: "an object, such as '{\"size\": 128}'"}
    shape = shapes[kind]
    given = plain(text.strip()[:MOST_SHOWN])
    try:
        value = json.loads(text, parse_constant=_no_number)
        why = too_large(text)
    except (ValueError, RecursionError) as error:
        refuse(f"{what}={given} is not JSON ({error}); allowed: {shape}")
    if why:
        refuse(f"{what}={given} is refused by workers: {why}")
    if not isinstance(value, kind):
        refuse(f"{what}={given} is not {shape}")
    return value


def _no_number(word: str) -> NoReturn:
    """Called for NaN and Infinity, which Python's JSON has and other languages' have not."""
    raise ValueError(f"{word} is no number of JSON")


def _check_arguments(task: str, args: list[object], kwargs: dict[str, object]) -> None:
    try:
        check_arguments(tasks()[task], args, kwargs)
    except TypeError as error:
        reason = str(error).replace(f"{task.rpartition('.')[2]}()", "").strip()
        refuse(f"these arguments do not fit {task}: {reason}")


if __name__ == "__main__":
    main()
