"""RabbitMQ confirms a message without a queue, and drops it. The sender of a task must get an error."""

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection, Exchange
from kombu.exceptions import OperationalError

from celery_kit.produce.bulk import NotAllSentError, Sender, calls
from tests.engine.rabbitmq.conftest import Urls
from tests.harness.kit import kit as kit_of


def kit(urls: Urls, **environ: str) -> Any:
    given = {"CELERY_BROKER_URL": urls.broker, "CELERY_RESULT_BACKEND": urls.results, "BROKER": "", "BACKEND": ""}
    app = kit_of({**given, "PUBLISH_TIMEOUT": "3", **environ})

    @app.task(name="unrouted.nothing")
    def nothing() -> None:
        """A task that is never run."""

    return app


def send_many(app: Any, number: int, queue: Any) -> list[str]:
    with app.producer_or_acquire() as producer:
        return Sender(app, app.tasks["unrouted.nothing"], {"queue": queue.name}, producer).send(calls([()] * number))


@pytest.fixture(params=["fast", "plain"])
def app(request: pytest.FixtureRequest, urls: Urls) -> Iterator[Any]:
    made = kit(urls, ENGINE=request.param)
    yield made
    made.close()


@pytest.fixture
def queue(app: Any, urls: Urls) -> Iterator[Any]:
    """A new queue, bound as by Celery, and declared for the app's producers."""
    name = f"engine.{uuid4()}"
    app.send_task("unrouted.nothing", queue=name)
    with Connection(urls.broker) as connection:
        bound = app.amqp.queues[name](connection.default_channel)
        yield bound
        bound.delete()


def count(queue: Any) -> int:
    return int(queue.queue_declare(passive=True).message_count)


def unbind(queue: Any) -> None:
    queue.unbind_from(queue.exchange, queue.routing_key)


def test_a_task_whose_queue_is_not_bound_is_sent_once_it_is(app: Any, queue: Any) -> None:
    """The second attempt to send binds the queue."""
    unbind(queue)
    app.send_task("unrouted.nothing", queue=queue.name)
    assert count(queue) == 2


def test_a_delay_like_the_one_before_it_is_sent_once_its_queue_is_bound(app: Any, queue: Any) -> None:
    app.conf.task_default_queue = queue.name
    for _ in range(2):
        app.tasks["unrouted.nothing"].delay()
    unbind(queue)
    app.tasks["unrouted.nothing"].delay()
    assert count(queue) == 4  # including the fixture's task


def test_tasks_sent_together_are_sent_once_their_queue_is_bound(app: Any, queue: Any) -> None:
    """Here another client binds the queue. The error names the tasks that were not sent."""
    send_many(app, 1, queue)
    unbind(queue)
    binding = threading.Timer(0.5, queue.bind_to, (queue.exchange, queue.routing_key))
    binding.start()
    send_many(app, 10, queue)
    binding.join()
    assert count(queue) == 12  # including the fixture's task
    unbind(queue)
    with pytest.raises(NotAllSentError, match="no queue") as error:
        send_many(app, 10, queue)
    assert len(error.value.uncertain) == 10


def test_a_task_that_no_queue_takes_is_an_error(app: Any, queue: Any) -> None:
    with pytest.raises(OperationalError, match="no queue takes the message"), app.producer_or_acquire() as producer:
        producer.publish("body", exchange=queue.exchange, routing_key="no.such", mandatory=True, retry=True)
    app.send_task("unrouted.nothing", queue=queue.name)  # the producer still works
    assert count(queue) == 2


def test_a_broadcast_may_find_nobody(app: Any, urls: Urls) -> None:
    with app.producer_or_acquire() as producer:
        exchange = Exchange(f"engine.{uuid4()}", "fanout", auto_delete=True)(producer.channel)
        exchange.declare()
        producer.publish("body", exchange=exchange, routing_key="", retry=True)
        exchange.delete()


def test_a_key_of_the_users_own_may_find_nobody(app: Any, queue: Any) -> None:
    """As with Celery: with a user's own exchange and bindings, a task may have no receiver."""
    app.send_task("unrouted.nothing", exchange=queue.exchange.name, routing_key="nobody's")
    assert count(queue) == 1


def test_the_first_task_of_a_queue_that_a_worker_begins_to_consume_arrives(app: Any, urls: Urls) -> None:
    """Both bind the queue. The broker confirms the second binding before the queue is bound."""
    lost = []
    with Connection(urls.broker) as connection:
        for number in range(150):
            queue = app.amqp.queues[f"engine.{uuid4()}"](connection.default_channel)
            together = threading.Barrier(2)

            def worker(queue: Any = queue, together: threading.Barrier = together) -> None:
                together.wait()
                queue.declare()

            thread = threading.Thread(target=worker)
            thread.start()
            together.wait()
            app.send_task("unrouted.nothing", queue=queue.name)
            thread.join()
            if not count(queue):
                lost.append(number)
            queue.delete()
    assert lost == []
