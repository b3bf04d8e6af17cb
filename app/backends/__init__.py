"""The result backends: one product, one module. The contract is :class:`Backend`, the table is :data:`BACKENDS`."""

from app.backends import redis, rpc
from app.backends.contract import Backend

__all__ = ["BACKENDS", "Backend", "room"]

BACKENDS: dict[str, Backend] = {room.backend.name: room.backend for room in (redis, rpc)}


def room(url: str | None) -> Backend | None:
    """The room of the result backend at `url`, if it is one of the table's."""
    scheme = (url or "").partition(":")[0]
    return next((backend for backend in BACKENDS.values() if scheme in backend.schemes), None)
