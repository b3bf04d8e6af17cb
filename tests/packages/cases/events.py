"""Tasks for those that listen to events."""

from typing import Any

from tests.compat.side import app


@app.task(name="packages.works")
def works(word: str) -> str:
    return word


@app.task(name="packages.fails")
def fails(word: str) -> None:
    raise ValueError(word)


@app.task(name="packages.warm")
def warm_up() -> None:
    pass


def warm() -> None:
    warm_up.delay().get(timeout=20)


def sent() -> Any:
    for result in [works.delay("first"), works.delay("second"), app.send_task("packages.works", ("named",)), fails.delay("x")]:
        result.get(timeout=20, propagate=False)
