"""Messages move from a Redis database to another one, each once. celery_kit/brokers/redis/moving.py

`make test-migrate` does it with real kills, and with RabbitMQ at either end.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from celery_kit.brokers import moving
from celery_kit.brokers.moving import NoRoomError, OtherTargetError, move
from celery_kit.brokers.redis.moving import RedisEnd
from tests.harness.servers import Server
from tests.migrate.ends import Place, difference, fill, found, sign

numbers = count(2)


class InterruptedRunError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def places(server: Server) -> tuple[Place, Place]:
    """Two empty databases."""
    found = [Place(f"redis://127.0.0.1:{server.port}/{2 + next(numbers) % 14}") for _ in range(2)]
    for one in found:
        Redis.from_url(one.url).flushdb()
    return found[0], found[1]


@contextmanager
def end(place: Place) -> Iterator[RedisEnd]:
    with closing(place.app()) as app, app.connection_for_write() as connection:
        opened = RedisEnd(app, connection, {}, ())
        yield opened
        opened.close()


def moved(source: Place, target: Place) -> list[int]:
    """Move everything. Returns the sizes of the batches."""
    sizes: list[int] = []
    with end(source) as from_, end(target) as to:
        move(from_, to, lambda batch: sizes.append(len(batch.messages)))
    return sizes


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "MOST", 20)


def test_all_are_moved_as_they_are(places: tuple[Place, Place]) -> None:
    source, target = places
    fill(source, 30, 6, 6, 6, queues=("celery", "other"))
    sign(target)
    before = found(source)
    assert len(before) == 48
    assert moved(source, target) == [20, 20, 8]
    assert not difference(before, found(target))
    assert not found(source)


@pytest.mark.parametrize("step", ["claim", "store", "drop", "forget"])
def test_a_run_that_ends_after_a_step_goes_on(places: tuple[Place, Place], step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = places
    fill(source, 30, 6, 6, 6)
    sign(target)
    before, original, calls = found(source), getattr(RedisEnd, step), count(1)

    def interrupted(self: RedisEnd, *given: Any) -> Any:
        answer = original(self, *given)
        if next(calls) == 2:
            raise InterruptedRunError
        return answer

    with monkeypatch.context() as during:
        during.setattr(RedisEnd, step, interrupted)
        with pytest.raises(InterruptedRunError):
            moved(source, target)
    moved(source, target)
    assert not difference(before, found(target))
    assert not found(source)


def test_two_runs_at_a_time_move_each_message_once(places: tuple[Place, Place]) -> None:
    source, target = places
    fill(source, 50)
    before = found(source)
    with end(source) as one, end(source) as two, end(target) as to, end(target) as and_to:
        first = one.claim(to.name())
        assert first
        assert first == two.claim(and_to.name())
        to.store(first)
        one.drop(first)
        second = one.claim(to.name())
        and_to.store(first)  # it was frozen meanwhile
        two.drop(first)
        assert second
        assert second == two.claim(to.name())
        move(one, to, lambda _: None)
    assert not difference(before, found(target))


def test_a_claim_for_another_target_stays(places: tuple[Place, Place], server: Server) -> None:
    source, target = places
    fill(source, 5)
    with end(source) as from_, end(target) as to:
        assert from_.claim("elsewhere")
        with pytest.raises(OtherTargetError, match="elsewhere"):
            move(from_, to, lambda _: None)
    assert not found(target)


def test_a_full_target_takes_nothing_until_it_has_room(places: tuple[Place, Place], server: Server) -> None:
    source, target = places
    fill(source, 30)
    before = found(source)
    server.broker.config_set("maxmemory", "1mb")
    try:
        # The source is on the same server: what is claimed must not get lost because its list cannot be written.
        with end(source) as from_, end(target) as to, pytest.raises((NoRoomError, ResponseError)):
            move(from_, to, lambda _: None)
    finally:
        server.broker.config_set("maxmemory", "0")
    moved(source, target)
    assert not difference(before, found(target))


def test_a_key_of_another_kind_at_the_target_refuses_the_whole_batch(places: tuple[Place, Place]) -> None:
    source, target = places
    fill(source, 15)
    before, there = found(source), Redis.from_url(target.url)
    there.set("celery", "a text")
    with end(source) as from_, end(target) as to, pytest.raises(ResponseError, match="celery is not a list"):
        move(from_, to, lambda _: None)
    there.delete("celery")
    moved(source, target)
    assert not difference(before, found(target))


def test_what_is_no_message_is_a_dead_letter_at_the_target(places: tuple[Place, Place]) -> None:
    source, target = places
    Redis.from_url(source.url).lpush("celery", "garbage")
    moved(source, target)
    [record] = Redis.from_url(target.url).hvals("celery.dead")
    assert b'"item": "garbage"' in record
    assert b"no message" in record


def test_delayed_messages_are_pushed_where_nobody_moves_them(places: tuple[Place, Place]) -> None:
    """Workers of plain Celery hold them until their ETA."""
    source, target = places
    fill(source, 0, 3)
    moved(source, target)
    assert Redis.from_url(target.url).llen("celery") == 3


def test_what_a_dead_worker_held_is_moved_too(places: tuple[Place, Place]) -> None:
    source, target = places
    fill(source, 1)
    client: Any = Redis.from_url(source.url)
    item = client.rpop("celery").decode()
    client.hset("unacked", "tag", f'[{item}, "", "celery"]')
    client.zadd("unacked_index", {"tag": 1})
    client.zadd("unacked.leases", {"gone@host/0.1": 0})
    client.zadd("unacked.held:gone@host/0.1", {"tag": 1})
    moved(source, target)
    assert Redis.from_url(target.url).llen("celery") == 1
