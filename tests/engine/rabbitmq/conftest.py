"""Servers for the engine's tests: those of CELERY_BROKER_URL and CELERY_RESULT_BACKEND, or a new stack."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.harness.servers import rabbitmq


@dataclass(frozen=True)
class Urls:
    broker: str
    results: str


@pytest.fixture(scope="session")
def urls() -> Iterator[Urls]:
    broker, results = os.environ.get("CELERY_BROKER_URL"), os.environ.get("CELERY_RESULT_BACKEND")
    if broker and results:
        yield Urls(broker, results)
        return
    with rabbitmq("results") as (url, stack):
        assert stack
        yield Urls(url, stack.results_url(3))
