"""Faults of Broadcast queues, at the producer."""

from collections.abc import Iterable
from typing import Any

from kombu import Exchange, Queue


def exchanges(queues: Iterable[Any], queue: Any, exchange: Any) -> list[Exchange]:
    """What to declare for a message to this queue, or this exchange, that declares nothing itself. Both may be names.

    A producer declares the queues that it sends to, but not a Broadcast, which is a worker's own. A transport in kombu's
    virtual base does not know an exchange that this process has not declared, takes it for a direct one, and finds no queue
    bound to it by the message's key: the task reaches nobody, without an error.
    """
    found: Any = exchange
    if not isinstance(exchange, Exchange):
        to = (getattr(one, "exchange", None) for one in ([queue] if isinstance(queue, Queue) else queues))
        found = next((one for one in to if one and exchange in (None, "", one.name)), None)
    return [found] if found is not None and found.type == "fanout" else []
