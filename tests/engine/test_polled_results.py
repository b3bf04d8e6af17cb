"""A result by rpc that is polled by `state` arrives, whenever the task ends. fix polled_results"""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from celery.app.task import Context

from celery_kit import Kit
from tests.harness.servers import Server


def test_a_task_that_ends_while_its_state_is_looked_at(server: Server) -> None:
    app = Kit(broker=server.urls["CELERY_BROKER_URL"], backend="rpc://", set_as_current=False)
    backend: Any = app.backend
    result = app.AsyncResult(uuid4().hex)
    request = Context(reply_to=backend.oid, correlation_id=result.id)
    look = backend._slurp_from_queue

    def look_and_end(*args: Any, **options: Any) -> Iterator[Any]:
        yield from look(*args, **options)
        backend._slurp_from_queue = look
        backend.store_result(result.id, 3, "SUCCESS", request=request)

    backend._slurp_from_queue = look_and_end
    with app.connection_for_write() as connection:
        backend.binding(connection.default_channel).declare()
        backend.store_result(result.id, None, "STARTED", request=request)
        assert result.state == "STARTED"
        assert [result.state, result.result] == ["SUCCESS", 3]
    app.close()
