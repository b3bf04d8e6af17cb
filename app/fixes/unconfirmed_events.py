"""A worker's loop waits without an end for the broker's confirm of an event.

With confirm_publish every event - a worker's sign of life, each two seconds - waits for its confirm, in the loop's own thread
and without a time limit. On a connection that is dead, and nobody is told, the loop so never comes to look at its AMQP
heartbeats, and the worker stands still for good.
Source: celery 5.7.0, worker/heartbeat.py; amqp 5.4.2, channel.py, basic_publish_confirm.

Closed by sending a worker's events unconfirmed: they report, and nothing depends on one. Can go when the trials `half_open` of
tests/faults/test_faults.py pass on RabbitMQ without it.
"""

from typing import Any

from celery.app.events import Events as CelerysEvents
from celery.events.dispatcher import EventDispatcher


class Events(CelerysEvents):
    dispatcher_cls = "app.fixes.unconfirmed_events:Dispatcher"


Base: Any = EventDispatcher  # the stubs know little of it


class Dispatcher(Base):  # type: ignore[misc]
    def enable(self) -> None:
        super().enable()
        if self.channel is None:  # a connection of its own; a producer's channel confirms tasks, too
            channel: Any = self.producer.channel
            channel.basic_publish = getattr(channel, "_basic_publish", channel.basic_publish)
