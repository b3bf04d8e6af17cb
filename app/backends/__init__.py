"""The result backends: one product, one module. The contract is :class:`Backend`, the table is :data:`BACKENDS`."""

from app.backends import redis, rpc
from app.backends.contract import Backend

__all__ = ["BACKENDS", "Backend"]

BACKENDS: dict[str, Backend] = {room.backend.name: room.backend for room in (redis, rpc)}
