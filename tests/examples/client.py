"""What a project's own code does with its app: `client.py APP CALLS`, by its interpreter. CALLS and the answer are JSON.

A call is [task, arguments], or [task, [arguments, …], callback] for a chord. It gives the result, or the name of its error.
`late` as its first word sends only, and gives the id; `of` with such an id waits for it. `restore` has Redis hand out at once
what a killed worker held, which is else done after the visibility timeout.
"""

import json
import sys
from typing import Any

from celery import chord
from celery.app.utils import find_app

SECONDS = 60


def outcome(result: Any) -> Any:
    try:
        return result.get(timeout=SECONDS)
    except Exception as error:
        return type(error).__name__


def one(app: Any, call: list[Any]) -> Any:
    if call[0] == "of":
        return outcome(app.AsyncResult(call[1]))
    if call[0] == "restore":
        with app.connection_for_write(transport_options={"visibility_timeout": 0}) as connection:
            return connection.default_channel.qos.restore_visible(interval=1)
    if call[0] == "late":
        return app.tasks[call[1]].delay(*call[2]).id
    if len(call) == 3:
        task, each, callback = call
        return outcome(chord(app.tasks[task].s(*args) for args in each)(app.tasks[callback].s()))
    return outcome(app.tasks[call[0]].delay(*call[1]))


def main() -> None:
    app: Any = find_app(sys.argv[1])
    app.loader.import_default_modules()
    print(json.dumps([one(app, call) for call in json.loads(sys.argv[2])]))


if __name__ == "__main__":
    main()
