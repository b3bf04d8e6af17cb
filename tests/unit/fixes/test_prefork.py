"""prefork's pool: fix auto_concurrency."""

import os
from dataclasses import dataclass

import pytest
from celery.utils.dispatch import Signal

from celery_kit.fixes import prefork


@dataclass(eq=False)
class Worker:
    concurrency: int | str


def test_auto_is_a_process_a_core_and_a_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = Signal(name="worker_init")
    monkeypatch.setattr(prefork, "worker_init", signal)
    prefork.auto_concurrency()
    workers = [Worker(given) for given in ("auto", 3)]
    for worker in workers:
        signal.send(sender=worker)
    assert [worker.concurrency for worker in workers] == [len(os.sched_getaffinity(0)), 3]
