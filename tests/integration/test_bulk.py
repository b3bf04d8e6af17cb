"""Many messages at once, by send_many: each arrives as if delay() had sent it."""

from typing import Any

from kombu.utils.uuid import uuid

from celery_kit.base.correlation import SENT
from celery_kit.base.messages import SIGNATURE
from celery_kit.produce.alike import SILENT, Call
from celery_kit.produce.bulk import Sender, calls
from tests.integration.conftest import WAIT, Cell
from tests.integration.test_flow import flow_probes

assert flow_probes  # the producer knows its tasks
ADD, GIVE = "flow_probes.add", "flow_probes.give"


def send_many(cell: Cell, task: str, items: Any, **options: Any) -> list[str]:
    with cell.app.producer_or_acquire() as producer:
        return Sender(cell.app, cell.app.tasks[task], options, producer).send(calls(items))


def taken(cell: Cell, queue: str) -> dict[str, Any]:
    """The messages that wait in a queue, by their ids, without what differs by its nature; they are taken out.

    A header that is left out says what a worker assumes.
    """
    found = {}
    with cell.app.connection_for_read() as connection:
        where = cell.app.amqp.queues[queue](connection.default_channel)
        where.declare()
        while message := where.get(no_ack=True):
            task_id = message.headers["id"]
            own = {"delivery_tag": None, "application_headers": None, "delivery_info": None}
            parts = (
                {**SILENT, **message.headers, SENT: None, SIGNATURE: None},
                {**message.properties, **own},
                message.content_type,
                message.content_encoding,
            )
            found[task_id] = (repr(parts).replace(task_id, "the id"), message.body)
    return found


def test_send_many(cell: Cell) -> None:
    """1,000 messages at once: every result comes back by its id, and is its own."""
    ids = send_many(cell, ADD, [(n, n) for n in range(1_000)])
    assert [cell.app.AsyncResult(task_id).get(timeout=3 * WAIT) for task_id in ids] == [2 * n for n in range(1_000)]


def test_send_many_is_like_delay(cell: Cell) -> None:
    """Headers, properties and body are those that apply_async gives a message, whatever its arguments and options."""
    for args, options in (
        ((1,), {}),
        ((["it's", {"ü": None}],), {}),
        (("new\nline" * 500,), {}),
        ((1.5,), {"priority": 7, "headers": {"mine": "yes"}, "expires": None}),
        ((True,), {"time_limit": 30, "shadow": "another name", "ignore_result": True}),
        (("packed" * 50,), {"compression": "zlib"}),
    ):
        queue = f"bulk-{uuid()}"
        alone = cell.app.tasks[GIVE].apply_async(args, queue=queue, **options).id
        many = send_many(cell, GIVE, [args, args, args], queue=queue, **options)
        found = taken(cell, queue)
        assert set(found) == {alone, *many}
        assert [found[task_id] for task_id in many] == [found[alone]] * 3


def test_send_many_with_options(cell: Cell) -> None:
    """A message of a batch can have an id, a delay, a priority and headers of its own."""
    mine = f"mine-{uuid()}"
    options: list[dict[str, Any]] = [{"task_id": mine}, {"countdown": 1}, {"priority": 9, "headers": {"mine": "yes"}}]
    ids = send_many(cell, ADD, [Call((1, n), {}, own) for n, own in enumerate(options)])
    assert ids[0] == mine
    assert [cell.app.AsyncResult(task_id).get(timeout=WAIT) for task_id in ids] == [1, 2, 3]
