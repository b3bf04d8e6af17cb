"""The spool on RabbitMQ: a full queue delays only its own tasks."""

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from amqp import Message
from amqp.exceptions import MessageNacked
from kombu import Connection, Queue

from tests.engine.rabbitmq.conftest import Urls
from tests.engine.test_spool import run, spooled


@pytest.fixture
def environ(urls: Urls, tmp_path: Path) -> dict[str, str]:
    servers = {"CELERY_BROKER_URL": urls.broker, "CELERY_RESULT_BACKEND": urls.results}
    return {**os.environ, **servers, "SPOOL": str(tmp_path / "spool"), "PUBLISH_TIMEOUT": "1"}


def test_a_queue_that_takes_nothing_keeps_its_own_tasks_alone(urls: Urls, environ: dict[str, str]) -> None:
    """Tasks that the broker refuses wait in order. Tasks for other queues are sent."""
    limits = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    with Connection(urls.broker, transport_options={"confirm_publish": True}) as connection:
        channel: Any = connection.default_channel
        full, free = (
            Queue(f"{name}-{uuid4()}", routing_key="", queue_arguments=limits if name == "full" else {}, channel=channel)
            for name in ("full", "free")
        )
        try:
            for queue in (full, free):
                queue.declare()
            with pytest.raises(MessageNacked):
                while True:
                    channel.basic_publish_confirm(Message("fills it"), routing_key=full.name)
            places = [{"exchange": "", "routing_key": queue.name} for queue in (full, free, full, free)]
            first, second, _, fourth = spooled(environ, *places)
            code, out, err = run(environ, "-m", "celery_kit.operate.look.send", "forward")
            assert (code, out) == (2, [second, fourth])
            assert err[-1].startswith("celery-kit: ") and not any("Traceback" in line for line in err)
            assert sum("waits: " in line and "its queue is full" in line for line in err) == 1
            full.purge()
            assert first in run(environ, "-m", "celery_kit.operate.look.send", "forward")[1]
        finally:
            for queue in (full, free):
                queue.delete()
