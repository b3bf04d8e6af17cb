"""A task that expires in its queue on RabbitMQ is REVOKED, as it is elsewhere: whoever waits for it hears of its end.

The broker drops such a message itself, and no worker sees it. It goes to the dead-letter exchange (`dead.py`), and
from there into a queue from which workers take it, to store the state. That queue holds the latest so many and no more: where
no worker runs, the oldest are dropped, and stay PENDING.
"""

from importlib import import_module
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from kombu.common import ignore_errors

from celery_kit.brokers.contract import schemes_of
from celery_kit.brokers.rabbitmq.broker import broker
from celery_kit.brokers.rabbitmq.dead import REVOKED

logger = get_logger(__name__)
#: That a worker holds at once: to store one takes the loop as long as any state that it stores itself.
AT_ONCE = 10


class Step(bootsteps.StartStopStep):
    """Takes them by a channel of its own."""

    requires = ("celery_kit.worker.dead_lettering:DeadLettering", "celery.worker.consumer.events:Events")

    def include_if(self, parent: Any) -> bool:
        schemes = schemes_of(parent.app.conf.broker_read_url)
        return bool(schemes) and schemes <= {*broker.schemes}

    def start(self, parent: Any) -> None:
        channel = parent.connection.channel()
        channel.basic_qos(0, AT_ONCE, False)
        accept = parent.app.conf.accept_content
        self.consumer = parent.app.amqp.Consumer(
            channel, [REVOKED], on_message=lambda message: _revoke(parent, message), accept=accept, auto_declare=False
        )
        self.consumer.consume()

    def stop(self, parent: Any) -> None:
        consumer, self.consumer = getattr(self, "consumer", None), None
        if consumer is not None:
            ignore_errors(parent, consumer.cancel)
            ignore_errors(parent, consumer.channel.close)

    shutdown = stop


def _revoke(parent: Any, message: Any) -> None:
    make = import_module("celery.worker.request").Request  # only in workers
    try:
        request = make(message, app=parent.app, hostname=parent.hostname, eventer=parent.event_dispatcher)
    except Exception as error:  # of another app, or no task at all: nobody here can say more of it
        logger.info("an expired message is no task of this app: %r", error)
    else:
        try:
            request._announce_revoked("expired", False, None, True)
        except Exception:  # it stays where it is until the connection is a new one, and so many at most do
            logger.exception("the result backend was not told that %s[%s] has expired", request.name, request.id)
            return
        logger.info("Discarding expired task: %s[%s]", request.name, request.id)
    message.ack_log_error(logger, parent.connection_errors)
