"""What an app is, before a stack starts with it: `python -m celery_kit.operate.look.about` prints one line of JSON, or refuses.

Nothing is connected to. The app's modules are imported as a worker would import them.
"""

import json
import os

from kombu.utils.url import maybe_sanitize_url

from celery_kit.base.refusals import refuse
from celery_kit.defaults import contradictions as of_settings
from celery_kit.operate.target import app

#: Where a stack's own servers are named, by Celery's setting for the same; Celery has the variable win.
SERVERS = {"broker_url": "CELERY_BROKER_URL", "result_backend": "CELERY_RESULT_BACKEND"}


def load() -> list[str]:
    """Import what a worker imports; gives the names of the tasks. Refuses code or settings that cannot be loaded."""
    try:
        app.loader.import_default_modules()
        app.finalize()
        return sorted(name for name in app.tasks if not name.startswith("celery."))
    except Exception as error:  # a module may raise anything
        where = f" in {error.filename}" if isinstance(error, SyntaxError) else ""
        refuse(f"the tasks of {app.main or 'the app'} cannot be loaded: {type(error).__name__}: {_line(error)}{where}")


def contradictions() -> list[str]:
    """What the app's own settings contradict, a line each. They count, but for its servers."""
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
    """The queues that tasks are routed to, where the stack's workers do not consume all of them: one line."""
    own = (os.environ.get("CELERY_WORKER_QUEUES") or "").split(",")
    consumed = {name for name in own if name} or set(app.amqp.queues.consume_from)
    used = {queue for name in app.tasks if not name.startswith("celery.") and (queue := _queue(name))}
    if missing := sorted(used - consumed):
        every = ",".join(sorted(used | consumed))
        return [
            f"tasks are routed to {', '.join(missing)}, which no worker of this stack consumes: QUEUES={every} has them do so"
        ]
    return []


def _queue(task: str) -> str:
    """Where a task without arguments goes; empty where the app's own router cannot tell."""
    try:
        own = getattr(app.tasks[task], "queue", None)
        found = app.amqp.router.route({"queue": own} if own else {}, task)
    except Exception:  # a router of the app's own may raise anything
        return ""
    queue = found.get("queue") or app.conf.task_default_queue
    return str(getattr(queue, "name", queue))


def main() -> None:
    print(json.dumps({"tasks": load(), "contradictions": contradictions() + unconsumed()}))


if __name__ == "__main__":
    main()
