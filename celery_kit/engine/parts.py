"""The parts of the fast engine: where each works, and the versions that it was written for.

A part uses private functions of the packages in its `needs`. With other versions of them the part is left out, and Celery's own
code runs in its place. A worker logs once which parts are left out (celery_kit/fixes). ENGINE_WITHOUT leaves out parts by name,
to look for a fault or to measure what each part gains (`make bench ONLY=parts`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from celery_kit.base.choices import engine_without
from celery_kit.base.refusals import choose
from celery_kit.base.versions import unmet

WORKER, DELAY, SEND_MANY = "worker", "delay", "send_many"
PRODUCER = (DELAY, SEND_MANY)


@dataclass(frozen=True)
class Part:
    """A row of the table. `needs`: the versions of other packages, as `unmet` takes them.

    `sides`: whether a worker has it, `delay()`, or `send_many`. `brokers`, `pools`: those that it works on; empty for all.
    """

    name: str
    what: str
    needs: Mapping[str, str]
    sides: tuple[str, ...] = (WORKER,)
    brokers: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()

    def works(self, side: str, broker: str, pool: str = "") -> bool:
        """Whether it works on this side, with this broker and, on a worker, this pool."""
        return side in self.sides and broker in (self.brokers or broker) and pool in (self.pools or pool)


CELERY, KOMBU, AMQP = {"celery": "==5.7.*"}, {"kombu": "==5.7.*"}, {"amqp": "==5.4.*"}

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("commit", "results and their acknowledgements in groups; the fast path needs it", CELERY),
        Part("fast_path", "a plain message goes to the pool in one function", CELERY),
        Part("trace", "a shorter trace of a task that succeeds", CELERY),
        Part("result_text", "a result is written as text, without a dictionary", CELERY),
        Part("quick_json", "JSON without kombu's check of each object", KOMBU, (WORKER, *PRODUCER)),
        Part("pipes", "fewer system calls on the pipes to the children", CELERY, pools=("prefork",)),
        Part("wake_up", "a thread that ends a task wakes the loop", {}, pools=("threads", "eventlet", "gevent")),
        Part("take_ahead", "more messages than the prefetch count, by the worker's throughput", {}),
        Part(
            "fetch", "messages are fetched and acknowledged by one script", KOMBU, brokers=("redis", "valkey", "redis-sentinel")
        ),
        Part(
            "read_ahead", "a transport that reads, and acknowledges, many frames at once", KOMBU | AMQP, brokers=("rabbitmq",)
        ),
        Part("frames_in", "deliveries are decoded by the kit", AMQP, brokers=("rabbitmq",)),
        Part("frames_out", "messages are encoded by the kit", AMQP, PRODUCER, ("rabbitmq",)),
        Part("alike", "`delay()` makes a message like the one before", CELERY | KOMBU, (DELAY,)),
        Part("many_alike", "`send_many` makes messages like the first one", CELERY | KOMBU, (SEND_MANY,)),
        Part("brief", "arguments are described by `repr` where the text is the same", CELERY, PRODUCER),
        Part("quick_ids", "ids without a UUID object", {}, (SEND_MANY,)),
    )
}


@cache
def on(name: str) -> bool:
    """Whether this process uses a part. Refuses an unknown name in ENGINE_WITHOUT (one line, exit code 2)."""
    return not unmet(PARTS[name].needs) and name not in [choose("ENGINE_WITHOUT", one, PARTS) for one in engine_without()]


def left_out() -> list[str]:
    """The names of the parts whose versions are not installed."""
    return [part.name for part in PARTS.values() if unmet(part.needs)]


def engine(chosen: str, part: str) -> str:
    """The engine for a broker whose transport is this part: the chosen one, or "plain" where the part is left out."""
    return chosen if chosen == "plain" or on(part) else "plain"
