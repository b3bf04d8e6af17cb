"""celery-kit: Celery on any broker and pool, with settings that lose no task. Importing it changes nothing; `Kit()` does.

    from celery_kit import Kit

    app = Kit("shop", broker="amqp://…", backend="redis://…")

For use within tasks: celery_kit/once.py, progress.py, files.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_kit.base.correlation import correlation
    from celery_kit.kit import Kit, install
    from celery_kit.produce.send import send, send_many
    from celery_kit.results.outcome import look_up

#: The module of each name. They are imported lazily, because a worker has to patch its sockets before it imports Celery, and a
#: producer needs few of them.
_WHERE = {
    "Kit": "kit",
    "correlation": "base.correlation",
    "install": "kit",
    "look_up": "results.outcome",
    "send": "produce.send",
    "send_many": "produce.send",
}

__all__ = ["Kit", "correlation", "install", "look_up", "send", "send_many"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    value: object = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
