"""Servers for the engine's tests: those that CELERY_BROKER_URL and CELERY_RESULT_BACKEND name, or a stack of its own."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from tests.integration.bench import Stack
from tests.matrix import SERVERS
from tests.wait import until


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
    stack = Stack("rabbitmq")
    stack.compose.services = stack.services = ["broker", "results"]
    try:
        stack.start()
        stack.wait()
        port = stack.port(5672)
        until("the broker takes connections", lambda: SERVERS["rabbitmq"].version(stack.port))
        space = SERVERS["rabbitmq"].namespace(0, stack.port)
        broker = SERVERS["rabbitmq"].url.format(host="127.0.0.1", port=port, namespace=space)
        yield Urls(broker, f"redis://127.0.0.1:{stack.port(6379, 'results')}/3")
    finally:
        with patch.dict(os.environ, stack.environ):
            stack.run("down", "--volumes", "--timeout", "1")
