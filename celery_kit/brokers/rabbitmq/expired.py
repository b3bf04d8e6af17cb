"""Store REVOKED for a task that expires in its queue on RabbitMQ, as Celery does on other brokers.

The broker drops such a message, and no worker sees it. It goes to the dead-letter exchange (`dead.py`), and from there to a
queue that workers consume, to store the state. That queue has a limit: while no worker runs, the oldest messages are dropped,
and their tasks stay PENDING.
"""

from contextlib import suppress
from typing import cast

import kombu
from celery import bootsteps
from celery.utils.log import get_logger

from celery_kit.base import security
from celery_kit.base.types import Channel, Message, WorkerConsumer, WorkerRequest
from celery_kit.brokers.contract import schemes_of
from celery_kit.brokers.rabbitmq.broker import broker
from celery_kit.brokers.rabbitmq.dead import REVOKED

logger = get_logger(__name__)
#: The prefetch count: storing one state takes the loop as long as any state that it stores itself.
AT_ONCE = 10


class Step(bootsteps.StartStopStep):
    """Consumes the queue of expired tasks, on a channel of its own."""

    requires = ("celery_kit.worker.dead_lettering:DeadLettering", "celery.worker.consumer.events:Events")

    channel: Channel
    consumer: kombu.Consumer | None = None

    def include_if(self, parent: WorkerConsumer) -> bool:
        """Only if every broker of the app is RabbitMQ."""
        schemes = schemes_of(parent.app.conf.broker_read_url)
        return bool(schemes) and schemes <= {*broker.schemes}

    def start(self, parent: WorkerConsumer) -> None:
        """Start to consume. Raises the connection's errors."""
        self.channel = channel = parent.connection.channel()
        channel.basic_qos(0, AT_ONCE, False)
        accept = parent.app.conf.accept_content
        self.consumer = consumer = parent.app.amqp.Consumer(
            channel, [REVOKED], on_message=lambda message: _revoke(parent, message), accept=accept, auto_declare=False
        )
        consumer.consume()

    def stop(self, parent: WorkerConsumer) -> None:
        """Stop consuming, and close the channel."""
        consumer, self.consumer = self.consumer, None
        for undo in (consumer.cancel, self.channel.close) if consumer else ():
            with suppress(*parent.connection_errors, *parent.channel_errors):
                undo()

    shutdown = stop


def _revoke(parent: WorkerConsumer, message: kombu.Message) -> None:
    from celery.worker.request import Request  # only workers need it

    try:
        if signer := security.signer(parent.app):
            signer.task(cast("Message", message))
        made = Request(message, app=parent.app, hostname=parent.hostname, eventer=parent.event_dispatcher)
    except Exception as error:  # a message of another app, not a task, or not signed
        logger.info("an expired message is not a task of this app: %r", error)
    else:
        request = cast("WorkerRequest", made)
        try:
            request._announce_revoked("expired", False, None, True)
        except Exception:  # it stays unacknowledged until the connection is closed; AT_ONCE is the limit of such messages
            logger.exception("the state of the expired task %s[%s] could not be stored", request.name, request.id)
            return
        logger.info("Discarding expired task: %s[%s]", request.name, request.id)
    message.ack_log_error(logger, parent.connection_errors)
