"""How many messages a worker prefetches from a real RabbitMQ: quick work in batches, slow work like Celery."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub

from celery_kit.brokers.rabbitmq import window
from celery_kit.brokers.rabbitmq.dead import BROKER_LIMIT
from celery_kit.engine.prefetch import MOST
from tests.engine.rabbitmq.conftest import Urls

TRANSPORT = "celery_kit.brokers.rabbitmq.transport:Transport"
PREFETCH = 4
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": BROKER_LIMIT}


class Worker:
    """A connection on a worker's loop, and the messages that its consumer received. `work(message)` is called with each."""

    def __init__(self, url: str, *queues: Queue, work: Callable[[Any], object] | None = None, **options: Any) -> None:
        self.connection = Connection(url, transport=TRANSPORT, transport_options={"engine": "fast", **options})
        self.got: list[int] = []
        self.held: list[Any] = []
        self.work = work or self.held.append
        self.hub = Hub()
        self.channel: Any = self.connection.default_channel
        self.consumer = Consumer(
            self.channel, queues, on_message=self._take, accept=["json"], prefetch_count=PREFETCH, tag_prefix="worker.1-"
        )
        self.consumer.consume()
        self.connection.transport.register_with_event_loop(self.connection.connection, self.hub)

    def _take(self, message: Any) -> None:
        self.got.append(message.decode())
        self.work(message)

    @property
    def window(self) -> Any:
        return self.channel.window

    def has(self, count: int) -> bool:
        return len(self.got) >= count

    def until(self, there: Callable[[], object]) -> None:
        """Run the loop until `there`."""
        self.hub.timer.call_repeatedly(0.05, lambda: None)
        end = monotonic() + 60
        while not there():
            assert monotonic() < end, f"it has got {len(self.got)}, holds {len(self.held)}, {len(self.window.ready)} wait"
            self.hub.run_once()

    def close(self) -> None:
        self.connection.release()
        self.hub.close()


def ack(message: Any) -> None:
    message.ack()


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """A list of workers, which are closed at the end."""
    some: list[Worker] = []
    yield some
    for worker in some:
        worker.close()


def named(name: str, **options: Any) -> Queue:
    return Queue(name, Exchange(""), name, **{"queue_arguments": QUORUM, **options})


def publish(urls: Urls, queue: Queue, numbers: range) -> None:
    with Connection(urls.broker, transport_options={"confirm_publish": True}) as connection, Producer(connection) as producer:
        for number in numbers:
            producer.publish(number, routing_key=queue.name, declare=[queue], serializer="json")


@pytest.fixture
def queue(urls: Urls) -> Iterator[Queue]:
    """A queue with the messages 0 to 999."""
    queue = named(f"engine.{uuid4()}")
    publish(urls, queue, range(1_000))
    yield queue
    with Connection(urls.broker) as connection:
        queue(connection.default_channel).delete()


def left(urls: Urls, queue: Queue) -> int:
    """The number of messages that no consumer holds."""
    with Connection(urls.broker) as connection:
        channel: Any = connection.default_channel
        return int(channel.queue_declare(queue.name, passive=True).message_count)


def taken_ahead(worker: Worker) -> bool:
    return worker.window.ahead > PREFETCH and len(worker.window.ready) > PREFETCH


def test_no_more_than_the_prefetch_count_is_taken_of_slow_work(urls: Urls, queue: Queue, workers: list[Worker]) -> None:
    workers.append(worker := Worker(urls.broker, queue))
    worker.until(lambda: len(worker.got) == PREFETCH)
    for _ in range(3):
        worker.held.pop(0).ack()
        count = len(worker.got)
        worker.until(partial(worker.has, count + 1))
    assert worker.window.ahead == 0
    assert not worker.window.ready
    assert left(urls, queue) == 1_000 - 3 - PREFETCH


def test_quick_work_is_taken_ahead_and_handed_over_in_order(urls: Urls, queue: Queue, workers: list[Worker]) -> None:
    most = 0

    def work(message: Any) -> None:
        nonlocal most
        most = max(most, worker.window.ahead)
        message.ack()

    workers.append(worker := Worker(urls.broker, queue, work=work))
    worker.until(lambda: len(worker.got) == 1_000)
    assert PREFETCH < most <= MOST
    assert worker.got == list(range(1_000))
    worker.until(lambda: worker.window.ahead == 0)


def test_the_consumer_is_handed_no_more_than_its_prefetch_count(urls: Urls, queue: Queue, workers: list[Worker]) -> None:
    workers.append(worker := Worker(urls.broker, queue, work=ack))
    worker.until(lambda: worker.window.ahead > PREFETCH)
    worker.work = worker.held.append
    worker.until(lambda: taken_ahead(worker))
    assert len(worker.held) == PREFETCH
    worker.held.pop().ack()
    worker.until(lambda: len(worker.held) == PREFETCH)


def test_what_was_taken_for_a_quicker_pace_goes_back(urls: Urls, queue: Queue, workers: list[Worker]) -> None:
    """Another worker gets these messages, in their order."""
    workers.append(slow := Worker(urls.broker, queue, work=ack))
    slow.until(lambda: slow.window.ahead > PREFETCH)
    slow.work = slow.held.append
    slow.until(lambda: taken_ahead(slow))
    slow.until(lambda: len(slow.window.ready) <= PREFETCH)
    assert len(slow.held) == PREFETCH
    assert slow.window.ahead == 0
    workers.append(quick := Worker(urls.broker, queue, work=ack))

    def others_are_done() -> bool:
        slow.hub.run_once()
        return len(slow.got) + len(quick.got) + PREFETCH == 1_000

    quick.until(others_are_done)
    slow.work = ack
    for message in slow.held:
        message.ack()
    slow.until(lambda: len(slow.got) + len(quick.got) == 1_000)
    assert set(slow.got).isdisjoint(quick.got)


def test_a_task_that_ran_for_long_keeps_nothing_from_other_workers(
    urls: Urls, queue: Queue, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On solo the loop does not run during a task, and prefetched messages stay unread in the socket."""
    monkeypatch.setattr(window, "STALLED", 0.2)
    workers.append(worker := Worker(urls.broker, queue, work=ack))
    worker.until(lambda: worker.window.ahead > PREFETCH)
    rest = threading.Event()

    def long(message: Any) -> None:
        rest.wait(0.3)
        message.ack()
        worker.work = worker.held.append

    worker.work = long
    worker.until(lambda: worker.work == worker.held.append)
    worker.until(lambda: len(worker.held) == PREFETCH)
    worker.until(lambda: left(urls, queue) >= 1_000 - len(worker.got) - PREFETCH)


def test_an_acknowledgement_of_another_thread_has_the_next_one_handed_over(
    urls: Urls, queue: Queue, workers: list[Worker]
) -> None:
    workers.append(worker := Worker(urls.broker, queue, work=ack))
    worker.until(lambda: worker.window.ahead > PREFETCH)
    worker.work = worker.held.append
    worker.until(lambda: taken_ahead(worker))
    message, count = worker.held.pop(), len(worker.got)

    def from_elsewhere() -> None:
        message.ack()
        worker.channel.flush_acks()

    thread = threading.Thread(target=from_elsewhere)
    thread.start()
    thread.join()
    worker.hub.run_once()
    worker.hub.run_once()
    assert len(worker.got) == count + 1


def test_a_cancelled_consumer_keeps_nothing_that_it_was_not_given(urls: Urls, queue: Queue, workers: list[Worker]) -> None:
    workers.append(worker := Worker(urls.broker, queue, work=ack))
    worker.until(lambda: worker.window.ahead > PREFETCH)
    worker.work = worker.held.append
    worker.until(lambda: taken_ahead(worker))
    worker.consumer.cancel()
    worker.until(lambda: left(urls, queue) == 1_000 - len(worker.got))
    worker.consumer.consume()
    worker.work = ack
    for message in worker.held:
        message.ack()
    worker.until(lambda: len(worker.got) == 1_000)


def test_a_queue_that_goes_with_its_last_consumer_stays(urls: Urls, workers: list[Worker]) -> None:
    queue = named(f"engine.{uuid4()}", auto_delete=True, queue_arguments={"x-queue-type": "classic"})
    publish(urls, queue, range(1_000))
    workers.append(worker := Worker(urls.broker, queue, work=ack))
    worker.until(lambda: len(worker.got) == 1_000)
    publish(urls, queue, range(1_000, 1_010))
    worker.until(lambda: len(worker.got) == 1_010)


@pytest.mark.parametrize("loop", [True, False])
def test_messages_of_a_queue_that_is_not_followed_take_no_place_of_others(
    urls: Urls, queue: Queue, workers: list[Worker], loop: bool
) -> None:
    """Such as the queue of a broadcast. On a green pool there is no loop that could deliver buffered messages later."""
    other = named(f"engine.{uuid4()}", auto_delete=True, queue_arguments={"x-queue-type": "classic"})
    publish(urls, other, range(10_000, 10_100))
    workers.append(worker := Worker(urls.broker, other, queue))
    if loop:
        worker.until(lambda: len(worker.got) == 2 * PREFETCH)
    else:
        worker.connection.connection.loop = None
        while len(worker.got) < 2 * PREFETCH:
            worker.connection.drain_events(timeout=10)
    assert sorted(worker.got) == [*range(PREFETCH), *range(10_000, 10_000 + PREFETCH)]


def test_nothing_is_taken_ahead_where_few_deliveries_are_allowed(urls: Urls, queue: Queue, workers: list[Worker]) -> None:
    """A requeued message counts as delivered."""
    workers.append(worker := Worker(urls.broker, queue, work=ack, take_ahead=False))
    worker.until(lambda: len(worker.got) == 1_000 or worker.window.ahead)
    assert worker.window.ahead == 0


def test_large_messages_are_not_taken_ahead(urls: Urls, workers: list[Worker]) -> None:
    queue = named(f"engine.{uuid4()}", auto_delete=True, queue_arguments={"x-queue-type": "classic"})
    with Connection(urls.broker) as connection, Producer(connection) as producer:
        for _ in range(60):
            producer.publish("x" * 3_000_000, routing_key=queue.name, declare=[queue], serializer="json")
    workers.append(worker := Worker(urls.broker, queue, work=ack))
    worker.until(lambda: len(worker.got) == 60)
    assert worker.window.ahead == 0
