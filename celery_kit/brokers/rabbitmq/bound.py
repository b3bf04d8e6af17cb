"""A producer's channel that stops waiting and reports why, and that notices a message for which there is no queue.

py-amqp waits for an answer of the broker (a confirm, a declaration) without a timeout. RabbitMQ does not answer publishers
while it has a memory or disk alarm; it announces that once (connection.blocked), which py-amqp does not report. A full queue
that rejects sends a nack. A message that no queue takes is confirmed and dropped; if it is `mandatory`, it is returned first.
That happens to the first messages of a new queue: if a starting worker and a producer bind it to a topic exchange at the same
time, the second gets its answer before the binding works.
Source: amqp 5.4.2, channel.py, basic_publish_confirm; https://www.rabbitmq.com/docs/connection-blocked
"""

from typing import Any

from amqp.exceptions import MessageNacked, RecoverableConnectionError

from celery_kit.base.messages import RefusedError, UnroutedError


def bound(channel: Any, seconds: float) -> None:
    """Have `channel` wait no longer than `seconds` for an answer. It raises RecoverableConnectionError after that, RefusedError
    for a message that the broker does not take, and UnroutedError for one that it returns.
    """
    blocked: list[object] = []
    channel.connection.on_blocked = blocked.append
    channel.connection.on_unblocked = blocked.clear
    channel.connection.sock.settimeout(seconds)  # once: py-amqp changes a different timeout before and after each call
    returned: list[str] = []
    channel.events["basic_return"].add(lambda _, exchange, key, __: returned.append(f"exchange {exchange!r}, key {key!r}"))
    wait = channel.wait

    def wait_a_while(method: Any, callback: Any = None, timeout: float | None = None, returns_tuple: bool = False) -> Any:
        try:
            answer = wait(method, callback, timeout or seconds, returns_tuple)
        except TimeoutError as error:
            alarm = "; it blocks publishers: it has a memory or disk alarm" if blocked else ""
            raise RecoverableConnectionError(f"no answer from the broker within {timeout or seconds:g} s{alarm}") from error
        except MessageNacked as error:
            raise RefusedError("the broker did not take the message: its queue is full, or cannot write it") from error
        if returned:  # before its confirm
            raise UnroutedError(f"no queue takes the message: {returned.pop()}")
        return answer

    channel.wait = wait_a_while
