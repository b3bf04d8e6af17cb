"""Faults of Broadcast queues, at the producer."""

from collections.abc import Iterable

from kombu import Exchange, Queue


def exchanges(queues: Iterable[Queue], queue: Queue | str | None, exchange: Exchange | str | None) -> list[Exchange]:
    """What to declare for a message to this queue or exchange, if the message declares nothing itself. Both may be names.

    `queues`: all that the app knows. A producer declares the queues that it sends to, but not a Broadcast, which each worker
    declares for itself. A transport on kombu's virtual base takes an exchange that this process has not declared for a direct
    one. It finds no queue bound to that by the message's key, so the task reaches nobody, without an error.
    """
    found = exchange if isinstance(exchange, Exchange) else None
    if found is None:
        to = (getattr(one, "exchange", None) for one in ([queue] if isinstance(queue, Queue) else queues))
        found = next((one for one in to if one and exchange in (None, "", one.name)), None)
    return [found] if found is not None and found.type == "fanout" else []
