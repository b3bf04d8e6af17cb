"""Every shape of a canvas nested three levels deep, with quick and slow members. All are sent at once."""

import time
from collections.abc import Iterator
from itertools import count, product
from typing import Any

from celery import chain, chord, group

from tests.compat.side import app

#: Seconds that a slow member takes, and the time limit for all canvases together.
SLOW, LONGEST = 0.05, 50.0
KINDS = ("chain", "group", "chord")
PLACES = ("first", "middle", "last")
#: The level, from outside, whose members are slow; -1: none is.
SPEEDS = (-1, 0, 1, 2)


@app.task(name="canvas.leaf")
def leaf(*given: Any, name: str, seconds: float = 0.0) -> list[Any]:
    """Its name and its arguments, so that a result shows its path through the canvas."""
    time.sleep(seconds)  # the work of this task: as long as the test asks for
    return [name, *given]


def shapes() -> Iterator[tuple[str, Any]]:
    """Each canvas with its name. Quick and slow members alternate. The last member of a chord is its body."""
    for number, (outer, first, inner, second, innermost) in enumerate(product(KINDS, PLACES, KINDS, PLACES, KINDS)):
        slow, names = SPEEDS[number % len(SPEEDS)], count()

        def of(kind: str, level: int, place: str = "", within: Any = None, slow: int = slow, names: Any = names) -> Any:
            seconds = SLOW if slow == level else 0.0
            members = [leaf.s(name=f"{level}.{next(names)}", seconds=seconds) for _ in PLACES]
            if within is not None:
                members[PLACES.index(place)] = within
            if kind == "chord":
                return chord(members[:-1], members[-1])
            return group(members) if kind == "group" else chain(*members)

        canvas = of(outer, 0, first, of(inner, 1, second, of(innermost, 2)))
        yield f"{outer}, {first} a {inner}, {second} a {innermost}, slow: {slow}", canvas


def gives(every: int = 1) -> dict[str, Any]:
    """The result of each canvas, or of every nth, all of them sent at once."""
    sent: dict[str, Any] = {}
    for name, canvas in list(shapes())[::every]:
        try:
            sent[name] = canvas.apply_async()
        except Exception as error:
            sent[name] = error
    until = time.monotonic() + LONGEST
    return {name: _gave(result, until) for name, result in sent.items()}


def _gave(result: Any, until: float) -> Any:
    if isinstance(result, Exception):
        return {"is not sent": type(result).__name__}
    try:
        return result.get(timeout=max(0.1, until - time.monotonic()))
    except Exception as error:
        return {"raised": type(error).__name__}
