"""A broker that is stopped, frozen, alarmed or full: producers wait a bounded time, get one error, and can send later."""

from typing import Any

import pytest
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_kit.base.messages import RefusedError
from tests.producer.conftest import Broker, Producer

SEND = ("mail.send_email", '["a@b.c", "hi"]')
#: What can be done to a broker. Only a broker with an alarm blocks its publishers.
FAULTS = [("redis", "stopped"), ("redis", "frozen"), ("rabbitmq", "stopped"), ("rabbitmq", "frozen"), ("rabbitmq", "alarmed")]
each_fault = pytest.mark.parametrize(("broker", "fault"), FAULTS, indirect=["broker"])


@each_fault
def test_a_command_that_cannot_send_says_so_in_one_line(broker: Broker, producer: Producer, fault: str) -> None:
    with getattr(broker, fault)():
        code, out, err = producer.run(*SEND)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"celery-kit: the broker at {broker.url.partition(':')[0]}://")


@each_fault
@pytest.mark.parametrize("backend", ["redis", "rpc"])
def test_a_producer_with_a_connection_gets_an_error_and_can_send_again_when_it_is_over(
    broker: Broker, producer: Producer, fault: str, queue: str, backend: str
) -> None:
    """With any result backend: a results server need not be available (redis), or it is the broker itself (rpc)."""
    app = producer.app(**({"CELERY_RESULT_BACKEND": "rpc://"} if backend == "rpc" else {}))
    sent = [app.send_task("some.task", queue=queue).id]
    with getattr(broker, fault)(), pytest.raises(OperationalError) as error:
        app.send_task("some.task", queue=queue)
    if fault == "alarmed" and backend == "redis":
        assert "it blocks publishers: it has a memory or disk alarm" in str(error.value)
    sent.append(app.send_task("some.task", queue=queue).id)
    received = producer.received(queue)
    assert [task_id for task_id in received if task_id in sent] == sent
    app.close()


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_message_that_a_full_queue_refuses_is_an_error(producer: Producer, queue: str) -> None:
    app = producer.app()
    limits = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    full: Any = Queue(queue, Exchange(queue, "topic"), queue, queue_arguments=limits)
    with pytest.raises(RefusedError, match="its queue is full"):
        for _ in range(100):
            app.send_task("some.task", queue=full)
    app.close()
