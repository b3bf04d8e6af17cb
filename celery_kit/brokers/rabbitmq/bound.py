"""A producer's channel that gives up waiting, and says why; and that hears of a message for which there is no queue.

py-amqp waits for the broker's answers (a confirm, a declaration) without end. RabbitMQ does not answer publishers while it has
a memory or disk alarm: it says so once (connection.blocked), and py-amqp keeps that to itself. A queue that is full and
rejects says so by a nack. What no queue takes is confirmed like any other message, and dropped; where it is `mandatory` it
comes back first. That happens to the first messages of a new queue: of two that bind it to a topic exchange at the same time,
a worker that starts and a producer, the second is told that it is bound before it is.
Source: amqp 5.4.2, channel.py, basic_publish_confirm; https://www.rabbitmq.com/docs/connection-blocked
"""

from typing import Any

from amqp.exceptions import MessageNacked, RecoverableConnectionError

from celery_kit.base.messages import RefusedError, UnroutedError


def bound(channel: Any, seconds: float) -> None:
    """Have `channel` wait no longer than `seconds` for an answer. It raises RecoverableConnectionError then, RefusedError for a
    message that the broker does not take, and UnroutedError for one that it gives back.
    """
    blocked: list[object] = []
    channel.connection.on_blocked = blocked.append
    channel.connection.on_unblocked = blocked.clear
    channel.connection.sock.settimeout(seconds)  # once: py-amqp changes a time limit that is another before and after each call
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
