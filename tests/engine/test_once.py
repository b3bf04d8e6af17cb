"""The leases of `@once` on a real Redis: each is renewed in time, whatever other runs the process has."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from celery_kit import once as module
from celery_kit.once import _Run
from celery_kit.pools.table import POOLS
from celery_kit.results.redis.claims import Claims
from tests.engine.rig import producer, worker
from tests.harness.servers import Server
from tests.harness.waiting import until

#: Number of renewals of a short lease after which it would have expired without them.
SEEN = 8


@pytest.fixture
def claims(server: Server, monkeypatch: pytest.MonkeyPatch) -> Claims:
    claims = Claims(server.results)
    monkeypatch.setattr(module, "_store", lambda _: claims)
    monkeypatch.setattr(module, "keeper", module._Keeper())
    return claims


@contextmanager
def running(lease: float, effect: Callable[[], Any] = lambda: None) -> Iterator[_Run]:
    """A run that lasts until the end of the block."""
    end, begun = threading.Event(), threading.Event()
    backend = SimpleNamespace(encode=lambda value: b"null")
    task: Any = SimpleNamespace(name="some.task", app=SimpleNamespace(backend=backend), request=SimpleNamespace(id=uuid4().hex))
    run = _Run(task, f"once:{uuid4()}", 60, lease)

    def work() -> None:
        begun.set()
        effect()
        end.wait()

    thread = threading.Thread(target=run.of, args=(work,))
    thread.start()
    begun.wait()
    try:
        yield run
    finally:
        end.set()
        thread.join()


def renewed(redis: Any, name: str, claim: bytes) -> None:
    """Watch a claim until its time to live has increased SEEN times. It must exist all the time."""
    last, ups = 0, 0

    def look() -> bool:
        nonlocal last, ups
        assert redis.get(name) == claim, "the claim has run out while its run goes on"
        left = redis.pttl(name)
        ups, last = ups + (left > last), left
        return bool(ups > SEEN)

    until(f"{name} is renewed", look, every=0.005)


def test_a_short_lease_that_begins_beside_a_long_one_is_renewed_in_time(server: Server, claims: Claims) -> None:
    """The thread that waits for the next renewal is woken when an earlier one is added."""
    with running(60), running(1) as short:
        renewed(server.results, short.name, short.claim)


def test_a_run_that_ends_with_its_store_unavailable_keeps_no_other_from_being_renewed(server: Server, claims: Claims) -> None:
    """A run that waits for its store delays no other."""
    with running(60) as ending, running(1) as short:
        ending.lock.acquire()  # as while it tries to store its result
        try:
            renewed(server.results, short.name, short.claim)
        finally:
            ending.lock.release()


def test_an_error_of_one_renewal_ends_neither_the_keeper_nor_the_renewals_of_others(server: Server, claims: Claims) -> None:
    """The shared thread survives every answer of a server."""
    with running(1) as odd, running(1) as short:
        server.results.delete(odd.name)
        server.results.lpush(odd.name, "no claim")  # WRONGTYPE
        renewed(server.results, short.name, short.claim)
        server.results.delete(odd.name)


def test_a_run_whose_claim_was_taken_is_named_and_takes_nothing_back(
    server: Server, claims: Claims, caplog: pytest.LogCaptureFixture
) -> None:
    """An expired claim is reported, at a renewal or at the end, and the other run keeps its own."""
    with running(60) as late:
        server.results.set(late.name, "another's")
    assert server.results.get(late.name) == b"another's"
    assert [record.message for record in caplog.records if "another run has it" in record.message]


def test_a_forked_child_renews_its_own_claims(server: Server, claims: Claims) -> None:
    """A child process, which does not inherit the thread, starts a new one."""
    with running(60):
        if not (child := os.fork()):
            code = 1
            try:
                with running(1) as short:
                    renewed(server.results, short.name, short.claim)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("pool", POOLS)
def test_each_pool_renews_a_short_lease_beside_a_long_one(server: Server, pool: str) -> None:
    """A claim is valid during the whole run, in a thread, a greenlet, a child process, or the worker itself."""
    queue, app = uuid4().hex[:8], producer(server)
    redis: Any = server.results
    with worker(server, pool, "fast", queue):
        both = POOLS[pool].concurrency != 1
        for lease in ("long", "short") if both else ("short",):
            app.send_task(f"engine.once_{lease}", (queue, lease), queue=queue)
            until(f"{lease} has begun", partial(redis.get, f"{queue}-{lease}"))
        (name,) = redis.keys("once:engine.once_short:*")
        renewed(redis, name, redis.get(name))
        redis.set(f"{queue}-end", 1)
        until("its result is noted", lambda: redis.get(name).startswith(b"done "))
        redis.delete(name)
