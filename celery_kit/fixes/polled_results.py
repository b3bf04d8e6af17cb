"""A result by rpc that is asked for with `state` or `ready()`, and never comes.

To look, celery 5.7.0 takes all that is in the queue for replies, keeps the last word about the task, throws away those before
it, and puts it back unless it is final. A transport that has no place for what comes back - Redis, memory - puts it at the end.
So where the task ends between the look and the putting back, "it has started" comes after "it is done" from there on, and the
next look throws the result away. Source: celery/backends/rpc.py, RPCBackend.get_task_meta; kombu/transport/redis.py,
Channel._do_restore_message: `lpush`, where what is taken next is at the right. Close to it:
https://github.com/celery/celery/issues/5414

Closed by reading a final state last, wherever it lay. Can go when
tests/engine/test_polled_results.py passes without it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from celery.states import READY_STATES


def final_last(slurp: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """What `slurp` takes from the queue for replies, the order of the rest as it was."""
    return lambda *args, **options: iter(sorted(slurp(*args, **options), key=_final))


def _final(message: Any) -> bool:
    return message.payload["status"] in READY_STATES
