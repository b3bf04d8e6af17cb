"""A primary that sentinels name: what its clients ask, what counts as sent, and what a stack tells of it."""

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis

from celery_kit.base.choices import ENGINES
from celery_kit.base.refusals import unless_refused
from celery_kit.brokers.redis.facts import facts
from celery_kit.brokers.redis.sentinel import Sentinel
from celery_kit.produce.bulk import Sender, calls
from celery_kit.profile import Profile
from celery_kit.results.redis.backend import claims
from tests.harness.kit import kit
from tests.harness.sentinels import Sentinels
from tests.harness.waiting import until


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as sentinels:
        yield sentinels


@pytest.fixture(params=ENGINES)
def app(sentinels: Sentinels, request: pytest.FixtureRequest) -> Celery:
    made: Celery = kit({**sentinels.urls, "ENGINE": request.param, "PUBLISH_TIMEOUT": "2"})
    return made


def length(sentinels: Sentinels, queue: str) -> int:
    found: Any = Redis(port=sentinels.primary()).llen(queue)
    return int(found)


def test_a_message_counts_as_sent_once_a_replica_has_it(sentinels: Sentinels, app: Celery) -> None:
    """By each way to send one; without replicas a producer gets an error, and none of them hangs."""
    queue = uuid4().hex[:8]

    @app.task(name=f"task.{queue}")
    def task(*_: str) -> None: ...

    def many() -> None:
        with app.producer_or_acquire() as producer:
            Sender(app, task, {"queue": queue}, producer).send(list(calls([("a@b.c", "hi")] * 3)))

    ways = (
        lambda: app.send_task("a.b", queue=queue),
        lambda: task.apply_async(("a@b.c", "hi"), queue=queue),
        lambda: task.apply_async(("a@b.c", "hi"), queue=queue, countdown=60),
        many,
    )
    for send in ways:
        send()
    primary = sentinels.primary()
    replicas = [port for port in sentinels.ports if port != primary]
    for port in replicas:
        sentinels.freeze(port)
    try:
        for send in ways:
            with pytest.raises(Exception, match=r"no replica of the server|NOREPLICAS"):
                send()
    finally:
        for port in replicas:
            sentinels.thaw(port)
    until("they follow", lambda: sentinels.info(primary)["connected_slaves"] == 2)
    until("they write again", lambda: app.send_task("a.b", queue=queue))
    assert sentinels.primary() == primary and length(sentinels, queue) >= 6


def test_results_and_claims_are_kept_there_too(sentinels: Sentinels, app: Celery) -> None:
    task_id = uuid4().hex
    app.backend.store_result(task_id, 3, "SUCCESS")
    assert app.AsyncResult(task_id).get(timeout=10) == 3
    store = claims(app, sentinels.url(1))
    assert store.claim(task_id, b"mine", 5.0) is None and store.claim(task_id, b"yours", 5.0) == b"mine"


def test_what_follows_the_primary_is_said(sentinels: Sentinels, app: Celery) -> None:
    lost = next(port for port in sentinels.ports if port != sentinels.primary())
    with app.connection_for_read() as connection:
        whole = facts(app, connection, {})
        assert any(note.startswith("2 of 2 replicas follow the primary") for note in whole.notes) and not whole.faults
        sentinels.kill(lost)
        try:
            (fault,) = until("it is noticed", lambda: facts(app, connection, {}).faults)
        finally:
            sentinels.start(lost)
        assert fault[0] == "only 1 of 2 replicas of the broker follow its primary: one more, and it refuses to write"
    until("it is back", lambda: sentinels.info(sentinels.primary())["connected_slaves"] == 2)


def test_a_program_of_another_network_is_given_other_addresses(sentinels: Sentinels) -> None:
    """ADDRESSES: the port that the sentinels name is not the one that is connected to."""
    primary = sentinels.primary()
    elsewhere = {f"127.0.0.1:{primary}": "127.0.0.1:1"}
    sentinel = Sentinel([("127.0.0.1", port) for port in sentinels.asked], addresses=elsewhere)
    sentinel.master_for(None)
    assert sentinel.discover_master("celery-kit") == ("127.0.0.1", 1)
    given = {**sentinels.urls, "ADDRESSES": f"127.0.0.1:{primary}=127.0.0.1:1", "PUBLISH_TIMEOUT": "1"}
    with patch.dict(os.environ, given):
        app = kit(given)
        with pytest.raises(OperationalError):
            app.send_task("a.b")


@pytest.mark.parametrize("given", ["broker-1", "broker-1:6379", "broker-1:6379=here", "a:b=c:d", "=,"])
def test_addresses_that_are_none_are_refused(given: str) -> None:
    _, said = unless_refused(lambda: Profile.from_environ({"ADDRESSES": given}))
    assert said == f"ADDRESSES={given} is not allowed; pairs of host:port=host:port, between commas"
