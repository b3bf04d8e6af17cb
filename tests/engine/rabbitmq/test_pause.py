"""Pauses on RabbitMQ: bindings, which survive its restart, and which no worker can make."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from amqp.exceptions import AccessRefused
from kombu import Connection

from celery_kit.base.choices import ENGINES
from celery_kit.brokers.rabbitmq.facts import facts
from celery_kit.brokers.rabbitmq.pauses import RabbitmqPauses
from celery_kit.pools.table import POOLS
from celery_kit.worker.pausing import EVERY
from testbed.stack import Stack
from tests.engine.rabbitmq.conftest import Urls
from tests.harness.kit import kit
from tests.harness.servers import rabbitmq
from tests.harness.waiting import until
from tests.harness.workers import Process, wait_for_worker, worker_argv

PAUSED, RESUMED = "is paused: it is not consumed", "is resumed"


def put(url: str, queue: str, paused: bool) -> None:
    """As `make pause` and `make resume`, but no worker is asked to look."""
    with Connection(url) as connection:
        RabbitmqPauses().put(connection, queue, paused)


def paused(url: str, *queues: str) -> set[str]:
    with Connection(url) as connection:
        return RabbitmqPauses().paused(connection, queues)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_learns_of_pauses_as_it_starts_and_by_itself(urls: Urls, tmp_path: Path, pool: str, engine: str) -> None:
    queue = uuid4().hex[:8]
    environ = {"CELERY_BROKER_URL": urls.broker, "CELERY_RESULT_BACKEND": urls.results, "ENGINE": engine, "QUEUE": queue}
    app = kit({**environ, "BROKER": "", "BACKEND": ""})
    app.amqp.queues[queue]
    put(urls.broker, queue, True)
    worker = Process(worker_argv("tests.engine.probe", pool, queue), tmp_path / "log", environ)
    try:
        wait_for_worker(worker)
        assert PAUSED in worker.said
        result = app.send_task("engine.add", (1, 2), queue=queue)
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            until("it waits", lambda: channel.queue_declare(queue, passive=True).message_count == 1)
            assert channel.queue_declare(queue, passive=True).consumer_count == 0
        put(urls.broker, queue, False)
        until("it looks by itself", lambda: RESUMED in worker.said, 60 + EVERY)
        assert result.get(timeout=60) == 3
        assert "Traceback" not in worker.said
    finally:
        worker.kill()
        app.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[tuple[str, Stack | None]]:
    with rabbitmq() as found:
        yield found


def test_pauses_survive_a_restart_and_ask_without_an_error(broker: tuple[str, Stack | None]) -> None:
    """Asking about a queue that is not paused is no error, which the broker would log for each worker and look."""
    url, stack = broker
    odd = "a queue/with#all *kinds.of-signs äöü"
    assert paused(url, "mail", odd) == set()
    put(url, odd, True)
    put(url, odd, True)
    put(url, "load", False)
    assert paused(url, "mail", odd, "load") == {odd}
    if stack:
        stack.run("restart", "broker")
        until("it is up again", lambda: paused_or_none(url, odd), 120)
        assert "not_found" not in stack.run("logs", "broker")
    assert paused(url, "mail", odd) == {odd}
    put(url, odd, False)
    assert paused(url, odd) == set()


def paused_or_none(url: str, queue: str) -> set[str]:
    try:
        return paused(url, queue)
    except OSError:
        return set()


def test_the_management_interface_lists_paused_queues(broker: tuple[str, Stack | None]) -> None:
    """Before any pause the exchange may not be there: then none is paused."""
    url, stack = broker
    if not stack:
        pytest.skip("the ports of a server that is given by TEST_RABBITMQ are not known to the kit")
    app = kit({"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": "rpc://", "BROKER": "", "BACKEND": ""})
    environ = {"RABBITMQ_MANAGEMENT_PORT": str(stack.port(15672))}

    def listed() -> dict[str, bool | None]:
        with app.connection_for_read() as connection:
            return {one.name: one.paused for one in facts(app, connection, environ).queues}

    put(url, "load", True)
    assert listed() == {"celery": False, "load": True}
    put(url, "load", False)
    assert listed() == {"celery": False}
    app.close()


def test_a_worker_may_ask_and_not_pause(broker: tuple[str, Stack | None]) -> None:
    url, stack = broker
    if not stack:
        pytest.skip("the accounts of a server that is given by TEST_RABBITMQ are not known to the tests")
    put(url, "mail", True)
    of_worker = stack.url_for("worker", url)
    assert paused(of_worker, "mail", "load") == {"mail"}
    for wanted in (True, False):
        with pytest.raises(AccessRefused):
            put(of_worker, "mail", wanted)
    assert paused(url, "mail") == {"mail"}
    put(url, "mail", False)
