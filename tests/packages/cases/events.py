"""Tasks for those that listen to events."""

from tests.compat.side import app
from tests.packages.cases.tasks import send_each_way


@app.task(name="packages.warm")
def warm_up() -> None:
    pass


def warm() -> None:
    warm_up.delay().get(timeout=20)


def sent() -> None:
    send_each_way()
