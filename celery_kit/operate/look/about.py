"""Describe an app before a stack starts with it: its tasks, its queues, and conflicts in its settings.

`python -m celery_kit.operate.look.about` prints one line of JSON, or refuses the app. With the argument `grouped` it does not
say which queues nobody consumes: its caller knows, who has the worker groups.

It opens no connection. The app's modules are imported as a worker would import them.
"""

import json
import os
import sys

from kombu.utils.url import maybe_sanitize_url

from celery_kit.base.refusals import refuse
from celery_kit.defaults import contradictions as of_settings
from celery_kit.operate.target import app
from celery_kit.produce.queues import of_version

#: By Celery setting: the variable with the address of the stack's own server. The variable takes precedence in Celery.
SERVERS = {"broker_url": "CELERY_BROKER_URL", "result_backend": "CELERY_RESULT_BACKEND"}


def load() -> list[str]:
    """Import what a worker imports, and return the names of the tasks. Refuses code or settings that cannot be loaded."""
    try:
        app.loader.import_default_modules()
        app.finalize()
        return _own_tasks()
    except Exception as error:  # a module may raise anything
        where = f" in {error.filename}" if isinstance(error, SyntaxError) else ""
        refuse(f"the tasks of {app.main or 'the app'} cannot be loaded: {type(error).__name__}: {_line(error)}{where}")


def contradictions() -> list[str]:
    """Conflicts of the app's own settings with the stack and with the kit, a line each.

    The app's settings are used in all cases except for the addresses of servers.
    """
    found = []
    for setting, variable in SERVERS.items():
        own, given = app.conf.get(setting), os.environ.get(variable)
        if own and given and own != given:
            shown = maybe_sanitize_url(str(own))
            found.append(f"{setting} is {shown} in the app's settings; the stack's own server is used ({variable})")
    return found + of_settings(app.conf)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def unconsumed() -> list[str]:
    """The queues that tasks are routed to and that no worker of the stack consumes, in one line. Empty if there are none."""
    own = (os.environ.get("CELERY_WORKER_QUEUES") or "").split(",")
    consumed = {of_version(name, app.conf.queue_version) for name in own if name} or set(app.amqp.queues.consume_from)
    used = {queue for name in _own_tasks() if (queue := _queue(name))}
    if missing := sorted(used - consumed):
        every = ",".join(sorted(used | consumed))
        return [
            f"tasks are routed to {', '.join(missing)}, which no worker of this stack consumes: QUEUES={every} has them do so"
        ]
    return []


def queues() -> list[str]:
    """The queues that the app knows: those that its tasks are routed to, and those that a worker consumes by default."""
    return sorted({queue for name in _own_tasks() if (queue := _queue(name))} | set(app.amqp.queues.consume_from))


def limited() -> dict[str, list[str]]:
    """By queue, the tasks that have a time limit of their own."""
    found: dict[str, list[str]] = {}
    for name in _own_tasks():
        task = app.tasks[name]
        if getattr(task, "time_limit", None) or getattr(task, "soft_time_limit", None):
            found.setdefault(_queue(name), []).append(name)
    return found


def _own_tasks() -> list[str]:
    return sorted(name for name in app.tasks if not name.startswith("celery."))


def _queue(task: str) -> str:
    """The name of the queue of a task without arguments. Empty if the app's own router fails."""
    try:
        own = getattr(app.tasks[task], "queue", None)
        found = app.amqp.router.route({"queue": own} if own else {}, task)
    except Exception:  # a router of the app's own may raise anything
        return ""
    queue = found.get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))


def main() -> None:
    """Print the description as JSON: the fields of `About` (celery_kit/operate/stacks/codebase.py)."""
    tasks, grouped = load(), sys.argv[1:] == ["grouped"]
    found = contradictions() + ([] if grouped else unconsumed())
    print(json.dumps({"tasks": tasks, "contradictions": found, "queues": queues(), "limited": limited()}))


if __name__ == "__main__":
    main()
