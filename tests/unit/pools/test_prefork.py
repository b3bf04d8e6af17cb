"""What the pool of processes forgets when a worker stops, and when it replaces a child. celery_kit/pools/prefork.py"""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import asynpool

from celery_kit.pools.prefork import Pool


class Job:
    """billiard's ApplyResult, as far as flush() asks it. `child`: what has it."""

    _accepted = False

    def __init__(self, cache: dict[int, Any], number: int, child: object) -> None:
        self._job, self._cache, self._write_to = number, cache, child
        cache[number] = self

    def ready(self) -> bool:
        return False

    def discard(self) -> None:
        self._cache.pop(self._job, None)


def test_only_what_no_child_has_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asynpool, "_get_job_writer", lambda _: None)
    pool: Any = object.__new__(Pool)
    cache: dict[int, Any] = {}
    held, waiting = Job(cache, 1, SimpleNamespace()), Job(cache, 2, None)
    vars(pool).update(
        _cache=cache, _state=vars(asynpool)["RUN"], synack=False, outbound_buffer=[waiting], maintain_pool=lambda: None
    )
    vars(pool).update({name: set() for name in ("_active_writers", "_active_writes", "_busy_workers")})
    pool.flush()
    assert (cache, pool.outbound_buffer) == ({1: held}, [])


class Dying:
    """A child whose pipe is closed, and that can be reaped when it has been looked at three times."""

    def __init__(self) -> None:
        self.looks = 0

    @property
    def exitcode(self) -> int | None:
        self.looks += 1
        return -9 if self.looks > 3 else None


def reaped(kind: type) -> bool:
    """Whether a pool can reap a child at the moment that it looks for its dead ones."""
    pool: Any = object.__new__(kind)
    child, seen = Dying(), []
    vars(pool).update(_untrack_child_process=lambda *_: None, maintain_pool=lambda: seen.append(child.exitcode))
    pool._event_process_exit(None, child)
    return seen == [-9]


def test_a_child_is_replaced_as_soon_as_it_has_ended() -> None:
    assert reaped(Pool)


def test_celery_still_looks_once() -> None:
    """If this fails, `Pool._event_process_exit` of celery_kit/pools/prefork.py may go."""
    assert not reaped(asynpool.AsynPool)
