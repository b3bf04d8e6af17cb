"""A worker of a kit's app gets the kit's class of its pool, however that is named; no other worker of the process does."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
from celery import Celery, concurrency
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import TaskPool as CelerysPrefork
from celery.concurrency.solo import TaskPool as CelerysSolo
from celery.concurrency.thread import TaskPool as CelerysThreads

from celery_kit import Kit
from celery_kit.pools.in_children import InChildren
from celery_kit.pools.in_process import InProcess
from celery_kit.pools.prefork import Pool, Prefork
from celery_kit.pools.solo import Solo
from celery_kit.pools.table import POOLS, row
from celery_kit.pools.threads import Threads

pytestmark = pytest.mark.usefixtures("made_and_forgotten")


def pool_of(app: Any, **options: Any) -> Any:
    """The class of the pool that a worker of `app` gets."""
    return app.Worker(concurrency=1, quiet=True, **options).pool_cls


def of_the_kit(**conf: Any) -> Any:
    app = Kit("one", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(conf)
    return app


@pytest.mark.parametrize("given", ["threads", "celery.concurrency.thread:TaskPool", CelerysThreads, "custom", Threads])
@pytest.mark.parametrize("way", ["an option", "its other name", "a setting"])
def test_the_class_is_the_kits_however_its_pool_is_named(given: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(concurrency)["ALIASES"], "custom", "celery.concurrency.thread:TaskPool")
    options = {"an option": {"pool": given}, "its other name": {"pool_cls": given}, "a setting": {}}[way]
    assert pool_of(of_the_kit(**({} if options else {"worker_pool": given})), **options) is Threads


@pytest.mark.parametrize(("name", "kind"), [("solo", Solo), ("threads", Threads), ("processes", Prefork)])
def test_another_app_of_the_process_has_celerys(name: str, kind: type) -> None:
    ours = pool_of(of_the_kit(), pool=name)
    plain = Celery("plain", broker="memory://", set_as_current=False)
    assert issubclass(ours, kind) and row(ours) is row(pool_of(plain, pool=name))
    assert pool_of(plain, pool=name).__module__.startswith("celery.")


class OwnThreads(CelerysThreads):
    def apply_async(self, *args: Any, **options: Any) -> Any:
        return super().apply_async(*args, **options)


class OwnPrefork(CelerysPrefork):
    pass


class OwnSolo(Solo):
    pass


class Sixth(Solo):
    pass


class OwnPool(BasePool):
    pass


class OwnProcesses(BasePool):
    uses_semaphore = True


@pytest.mark.parametrize(
    ("own", "first", "then"),
    [
        (OwnThreads, OwnThreads, Threads),
        (OwnPrefork, OwnPrefork, Prefork),
        (OwnPool, InProcess, OwnPool),
        (OwnProcesses, InChildren, OwnProcesses),
    ],
)
def test_a_users_own_class_keeps_its_name_and_has_what_the_kits_has(own: type, first: type, then: type) -> None:
    found = pool_of(of_the_kit(), pool=own)
    assert found.__mro__[1] is first and found.__mro__.index(first) < found.__mro__.index(then)
    assert (found.__module__, found.__qualname__) == (own.__module__, own.__qualname__)
    assert row(found) is row(own) is None


def test_a_users_own_class_of_the_kits_is_taken_as_it_is() -> None:
    assert pool_of(of_the_kit(), pool=OwnSolo) is OwnSolo


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_preforks_children_are_the_kits_on_both_engines(engine: str) -> None:
    found = pool_of(of_the_kit(engine=engine), pool="prefork")
    assert issubclass(found.Pool, Pool) and issubclass(found, Prefork) and row(found) is row(CelerysPrefork)
    assert (found.Pool.ResultHandler.__module__ == "celery_kit.engine.pipes") is (engine == "fast")


def test_a_pool_that_celery_does_not_know_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its table of pools, and on its command line: a row and its class are all that a new pool takes."""
    worker: Any = import_module("celery.bin.worker")
    aliases = vars(concurrency)["ALIASES"]
    monkeypatch.setattr(worker.WORKERS_POOL, "choices", worker.WORKERS_POOL.choices)
    monkeypatch.setitem(POOLS, "sixth", replace(POOLS["solo"], name="sixth", kind=f"{__name__}:Sixth"))
    monkeypatch.setitem(aliases, "sixth", aliases.get("sixth"))
    del aliases["sixth"]
    app = of_the_kit()
    assert pool_of(app, pool="sixth") is Sixth and row(Sixth) is POOLS["sixth"]
    assert "sixth" in worker.WORKERS_POOL.choices


def test_celerys_own_are_no_pool_of_the_kits() -> None:
    assert not issubclass(CelerysSolo, InProcess)
