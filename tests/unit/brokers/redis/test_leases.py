"""What a lease promises, step by step, on a real server. celery_kit/brokers/redis/leases.py, leases.lua"""

import os
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from redis.exceptions import ResponseError

from celery_kit.base.facts import Held, Server
from celery_kit.base.messages import DELIVERIES
from celery_kit.base.processes import mark
from celery_kit.brokers.redis import leases
from celery_kit.brokers.redis.facts import SHOWN, facts
from celery_kit.brokers.redis.leases import LEASES, Lease
from tests.engine.conftest import server as server
from tests.engine.test_fetch import Taken, connection, publish
from tests.harness.servers import Server as TestServer


@pytest.fixture
def queue() -> str:
    return uuid4().hex


@pytest.fixture(params=["fast", "plain"])
def taken(server: TestServer, queue: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    """A consumer that holds three messages. Others of this process are not its successors."""
    monkeypatch.setattr(leases, "_is_dead_predecessor", lambda *_: False)
    server.broker.flushdb()
    with connection(server, request.param) as one:
        publish(one, queue, *"abc")
        found = Taken(one, [queue], prefetch=3)
        found.drain(lambda: found.has(3))
        yield found


def held(server: TestServer) -> int:
    return int(server.broker.hlen("unacked"))


def dies(taken: Taken, server: TestServer) -> str:
    """End the lease of a consumer as its death would, without its knowledge. Returns its owner."""
    lease: Lease = taken.channel.lease
    LEASES.clear()  # the thread does not renew it
    server.broker.zadd("unacked.leases", {lease.owner: time.time() - 1})
    return lease.owner


def sweep(server: TestServer, queue: str) -> None:
    """Have another consumer look for ended leases."""
    with connection(server) as two:
        other = Taken(two, [f"{queue}-other"])
        server.broker.delete(*server.broker.keys("*:quiet"))
        other.channel.lease.keep(other.channel)


def test_what_a_dead_worker_held_is_requeued_in_its_order_and_counted_once(
    taken: Taken, server: TestServer, queue: str
) -> None:
    dies(taken, server)
    sweep(server, queue)
    sweep(server, queue)
    assert (held(server), server.broker.llen(queue)) == (0, 3)
    with connection(server) as two:
        again = Taken(two, [queue], prefetch=3)
        again.drain(lambda: again.has(3))
        assert again.bodies() == ["a", "b", "c"]
        assert [message.headers[DELIVERIES] for message in again.messages] == [1, 1, 1]


def test_what_is_no_longer_held_is_neither_acknowledged_nor_requeued(taken: Taken, server: TestServer, queue: str) -> None:
    """Another worker has got these messages, under the same tags."""
    dies(taken, server)
    sweep(server, queue)
    with connection(server) as two:
        again = Taken(two, [queue], prefetch=3)
        again.drain(lambda: again.has(3))
        first, second, third = taken.messages
        first.ack()
        second.requeue()
        third.reject()
        taken.channel.close()
        assert (held(server), server.broker.llen(queue)) == (3, 0)
        for message in again.messages:
            message.ack()
        again.drain(lambda: not held(server))


def test_a_consumer_that_has_lost_its_lease_connects_again(taken: Taken, server: TestServer, queue: str) -> None:
    dies(taken, server)
    sweep(server, queue)
    lease: Lease = taken.channel.lease
    tag = taken.messages[0].delivery_tag
    assert taken.channel.holds(tag), "it has not noticed yet, and asks nobody while its lease should last"
    lease.until = 0.0
    assert not taken.channel.holds(tag)
    with pytest.raises(taken.connection.connection_errors, match="taken for dead"):
        lease.keep(taken.channel)


def test_a_lease_that_is_late_and_that_nobody_ended_goes_on(taken: Taken, server: TestServer) -> None:
    lease: Lease = taken.channel.lease
    server.broker.zadd("unacked.leases", {lease.owner: time.time() - 60})
    lease.until = 0.0
    assert taken.channel.holds(taken.messages[0].delivery_tag)
    assert server.broker.exists(f"unacked.held:{lease.owner}:quiet"), "the server may have been unavailable to all"


@pytest.mark.parametrize("late", [0.0, 10.0])
def test_nobody_is_taken_for_dead_because_the_server_was_frozen(
    taken: Taken, server: TestServer, queue: str, late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked before it froze is executed afterwards."""
    dies(taken, server)
    with connection(server) as two:
        other = Taken(two, [f"{queue}-other"])
        server.broker.delete(*server.broker.keys("*:quiet"))
        other.channel.lease._ahead -= late
        other.channel.lease._sweep(other.channel)
        assert held(server) == (3 if late else 0)


def test_the_times_of_what_is_held_are_renewed(taken: Taken, server: TestServer) -> None:
    """Plain Celery compares them with its visibility timeout."""
    lease: Lease = taken.channel.lease
    tags = [message.delivery_tag for message in taken.messages]
    for key in ("unacked_index", f"unacked.held:{lease.owner}"):
        server.broker.zadd(key, dict.fromkeys(tags, 1.0))
    lease.times_at = 0.0
    assert lease.renew(taken.channel.plain_client)
    assert all(score and score > 1.0 for score in server.broker.zmscore("unacked_index", tags))
    for message in taken.messages:
        message.ack()
    taken.drain(lambda: not held(server))


def test_what_another_worker_fetched_meanwhile_is_not_requeued_with_a_dead_ones(
    taken: Taken, server: TestServer, queue: str
) -> None:
    """A worker of plain Celery may restore a message after the visibility timeout, and another one hold it."""
    dies(taken, server)
    server.broker.zadd("unacked_index", {taken.messages[0].delivery_tag: time.time()})
    sweep(server, queue)
    assert (held(server), server.broker.llen(queue)) == (1, 2)


def test_a_consumer_that_stops_leaves_no_lease(taken: Taken, server: TestServer, queue: str) -> None:
    taken.channel.close()
    assert server.broker.llen(queue) == 3 and not server.broker.keys("unacked*")[1:]
    assert all(b":quiet" in key for key in server.broker.keys("unacked*"))


def look(server: TestServer) -> list[Held]:
    app = Celery(broker=server.urls["CELERY_BROKER_URL"], set_as_current=False)
    with connection(server) as one:
        found: Server = facts(app, one, {})
    return found.held


def test_an_operator_sees_who_holds_each_message(taken: Taken, server: TestServer, queue: str) -> None:
    node = leases.named(taken.channel.owner)
    assert [(one.holder, one.dead, one.queue) for one in look(server)] == [(node, None, queue)] * 3
    dies(taken, server)
    assert all(one.holder == node and one.dead for one in look(server))
    server.broker.delete(f"unacked.held:{taken.channel.owner}")
    assert [one.holder for one in look(server)] == ["", "", ""]
    records: Any = {f"tag{number}": server.broker.hvals("unacked")[0] for number in range(SHOWN)}
    server.broker.hset("unacked", mapping=records)
    server.broker.zadd("unacked_index", dict.fromkeys(records, 1.0))
    assert look(server) == [Held("", SHOWN + 3)]


@pytest.mark.parametrize("taken", ["fast"], indirect=True)
def test_a_full_server_renews_a_lease(taken: Taken, server: TestServer) -> None:
    lease: Lease = taken.channel.lease
    server.broker.config_set("maxmemory", "1mb")
    try:
        lease.times_at = 0.0
        assert lease.renew(taken.channel.plain_client)
    finally:
        server.broker.config_set("maxmemory", "0")


@pytest.mark.parametrize("taken", ["fast"], indirect=True)
def test_what_a_server_refuses_to_requeue_is_requeued_when_the_loop_connects_again(taken: Taken, server: TestServer) -> None:
    lease: Lease = taken.channel.lease
    message = taken.messages[0]
    assert taken.channel.holds(message.delivery_tag) and message.delivery_tag in lease.running()
    server.broker.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(ResponseError, match="NOREPLICAS"):
            message.reject(requeue=True)
    finally:
        server.broker.config_set("min-replicas-to-write", 0)
    assert lease.lost and message.delivery_tag not in lease.running()


def test_without_scripts_a_consumer_works_as_plain_celery_does(server: TestServer, queue: str) -> None:
    with connection(server) as one:
        publish(one, queue, "a")
        server.broker.acl_setuser(
            "default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-@scripting"]
        )
        try:
            found = Taken(one, [queue])
            found.drain(lambda: found.has(1))
            assert found.channel.lease is None and found.channel.fetcher is None
            found.messages[0].ack()
        finally:
            server.broker.acl_setuser("default", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all"])


def test_a_living_worker_of_the_same_name_in_another_container_is_no_predecessor() -> None:
    """Both may have the node name and the process id. Otherwise a second worker would requeue what the first one runs."""
    here, pid, started = mark(os.getpid()).split("-")
    mine = f"w@x/{here}-{pid}-{started}.11"
    assert not leases._is_dead_predecessor(mine, mine)
    assert not leases._is_dead_predecessor(f"w@x/{'0' * 12}-{pid}-{started}.22", mine), "another container"
    assert not leases._is_dead_predecessor(f"w@x/{mark(os.getppid())}.22", mine), "another process, which lives"
    assert not leases._is_dead_predecessor(f"v@x/{here}-{pid}-1.22", mine), "another name"
    assert leases._is_dead_predecessor(f"w@x/{here}-{pid}-1.22", mine), "an earlier process with this id"
    assert leases._is_dead_predecessor(f"w@x/{here}-{pid}-{started}.22", mine), "an earlier worker in this process"
