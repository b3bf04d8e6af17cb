"""A worker's loop waits without an end for its own events: for the broker's confirm, and for the broker to come back.

With confirm_publish every event - a worker's sign of life, each two seconds - waits for its confirm, in the loop's own thread
and without a time limit. And where the broker has gone away, a sign of life that is due before the loop has seen it is tried
again until the broker is back: the loop itself never learns of it, and says nothing. On a connection that is dead, and nobody
is told, the worker so stands still for good.
Source: celery 5.7.0, worker/heartbeat.py (Heart._send: retry=True without a policy); kombu 5.7.0, Connection.ensure; amqp
5.4.2, channel.py, basic_publish_confirm.

Closed by sending a worker's events unconfirmed and once: they report, and nothing depends on one; one that was not sent goes
with the next connection. Can go when tests/engine/test_redis_restart.py::test_celery_still_waits_to_say_that_it_lives fails,
and the trials `half_open` of tests/faults/test_faults.py pass on RabbitMQ without it.
"""

from typing import Any

from celery.app.events import Events as CelerysEvents
from celery.events.dispatcher import EventDispatcher


class Events(CelerysEvents):
    dispatcher_cls = "celery_kit.fixes.events_in_the_loop:Dispatcher"


Base: Any = EventDispatcher  # the stubs know little of it


class Dispatcher(Base):  # type: ignore[misc]
    def enable(self) -> None:
        super().enable()
        if self.channel is None:  # a connection of its own; a producer's channel confirms tasks, too
            channel: Any = self.producer.channel
            channel.basic_publish = getattr(channel, "_basic_publish", channel.basic_publish)

    def send(self, type: str, *args: Any, retry: bool = False, **fields: Any) -> Any:
        return super().send(type, *args, retry=retry and not type.startswith("worker-"), **fields)
