"""The result backends: one product, one module. The contract is :class:`Backend`, the table is :data:`BACKENDS`."""

from functools import cache

from celery.app.backends import BACKEND_ALIASES
from kombu.utils.compat import entrypoints

from celery_kit.engine.parts import on
from celery_kit.results.contract import Backend
from celery_kit.results.redis.backend import backend as redis_row
from celery_kit.results.rpc import backend as rpc_row

__all__ = ["BACKENDS", "Backend", "classes", "other_backend", "room"]

BACKENDS: dict[str, Backend] = {row.name: row for row in (redis_row, rpc_row)}


@cache
def classes(engine: str) -> dict[str, str]:
    """By scheme, the kit's classes that replace Celery's result backends on an engine."""
    rows = BACKENDS.values() if engine == "fast" and on("commit") else ()
    return {scheme: kind for backend in rows for scheme, kind in backend.fast_classes.items()}


def room(url: object) -> Backend | None:
    """The table's row for the setting `result_backend`, or None. The setting may be a URL, a class, or the name of one."""
    # For redis+socket: the part before the plus, like celery/app/backends.py.
    scheme = url.partition(":")[0].partition("+")[0] if isinstance(url, str) else ""
    return next((backend for backend in BACKENDS.values() if scheme in backend.schemes), None)


def other_backend(scheme: str) -> Backend | None:
    """A row for a result backend of Celery, or of an installed package, that the kit has no module for. None if there is none.

    Celery's own class is used.
    """
    if scheme not in {*BACKEND_ALIASES, *(one.name for one, _ in entrypoints("celery.result_backends"))}:
        return None
    return Backend(
        name=scheme,
        schemes=(scheme,),
        url=lambda _environ, _broker: "",
        settings=lambda _: {},
        has_server=False,
        read_elsewhere=True,
        chords=True,
        thread_safe=False,  # Celery's default
    )
