"""Which queues are paused, on RabbitMQ: those whose names are bound to one exchange, each as a routing key.

An exchange and its bindings are durable, and on every node of a cluster. Binding needs rights that workers lack
(deploy/brokers/rabbitmq/permissions). Asking needs only the right to publish: the broker returns a message with the flag
`mandatory` whose routing key is not bound. The queue behind the bindings drops each message as it arrives.
Sources: https://www.rabbitmq.com/docs/publishers#unroutable, https://www.rabbitmq.com/docs/ttl.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from celery_kit.base.messages import PAUSED

if TYPE_CHECKING:
    from upstream.amqp import Channel

    from celery_kit.base.types import Connection

#: Of the queue behind the exchange: a quorum queue, so that it answers as long as the cluster does; it holds no message.
ARGUMENTS = {"x-queue-type": "quorum", "x-message-ttl": 0}
#: The most bytes of a routing key.
MOST = 255


class RabbitmqPauses:
    """See Pauses."""

    def fits(self, queue: str) -> bool:
        """Whether the name of a queue can be a routing key."""
        return 0 < len(queue.encode()) <= MOST

    def put(self, connection: Connection, queue: str, paused: bool) -> None:
        """Bind the name of a queue, or unbind it. Raises the connection's errors."""
        with connection.channel() as channel:
            _declare(channel)
            change = channel.queue_bind if paused else channel.queue_unbind
            change(queue=PAUSED, exchange=PAUSED, routing_key=queue)

    def paused(self, connection: Connection, queues: Collection[str]) -> set[str]:
        """Those of the queues that are paused. Raises the connection's errors."""
        with connection.channel() as channel:
            _declare(channel)
            returned: set[str] = set()
            channel.events["basic_return"].add(lambda error, exchange, key, message: returned.add(key))
            channel.confirm_select()
            for queue in queues:
                channel.basic_publish_confirm(
                    channel.prepare_message(b"", properties={"delivery_mode": 1}), PAUSED, queue, mandatory=True
                )
            return {*queues} - returned


def _declare(channel: Channel) -> None:
    """Declare both. Raises nothing: an error is raised by what follows."""
    channel.exchange_declare(PAUSED, "direct", durable=True, auto_delete=False, nowait=True)
    channel.queue_declare(PAUSED, durable=True, auto_delete=False, arguments=ARGUMENTS, nowait=True)
