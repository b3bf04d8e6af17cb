"""20 sorts of messages that are no task, as other programs, versions and serializers may leave them in a queue."""

import base64
import json
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

from kombu.utils.uuid import uuid

from celery_kit.produce.publishing import Connection

TASK = "faults.effect"


def _embedded() -> list[Any]:
    return [[0.0], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def sorts() -> Iterator[dict[str, Any]]:
    """A message of each sort: `body`, `headers`, `content_type`, `content_encoding`, `properties`, as kombu publishes them."""
    headers = {"id": uuid(), "task": TASK, "lang": "py", "root_id": None, "parent_id": None, "group": None}
    good = json.dumps(_embedded())
    yield {"body": "", "headers": headers}
    yield {"body": "{", "headers": headers}
    yield {"body": b"\xff\xfe\x00\x80", "headers": headers, "content_encoding": "utf-8"}
    yield {"body": "null", "headers": headers}
    yield {"body": "[]", "headers": headers}
    yield {"body": "7", "headers": headers}
    yield {"body": '{"a": 1}', "headers": headers}
    yield {"body": json.dumps([[0.0], {}]), "headers": headers}
    yield {"body": json.dumps([7, {}, {}]), "headers": headers}
    yield {"body": json.dumps([[], {"no_such": 1}, {}]), "headers": headers}
    yield {"body": good, "headers": {}}
    yield {"body": good, "headers": {**headers, "task": "no.such_task"}}
    yield {"body": good, "headers": {**headers, "task": None}}
    yield {"body": good, "headers": {key: value for key, value in headers.items() if key != "id"}}
    yield {"body": good, "headers": {**headers, "eta": "never"}}
    yield {"body": good, "headers": {**headers, "expires": "never"}}
    yield {"body": good, "headers": headers, "content_type": "application/x-no-such"}
    yield {
        "body": base64.b64encode(b"cos\nsystem\n.").decode(),
        "headers": headers,
        "content_type": "application/x-python-serialize",
    }
    yield {"body": "hello", "headers": {}, "content_type": "text/plain"}
    yield {"body": good, "headers": {**headers, "compression": "application/x-no-such"}}


def send(url: str, number: int, queue: str = "celery") -> None:
    """Send `number` of them unchanged to a queue that exists, with equally many of each sort."""
    with Connection(url) as connection, connection.Producer() as producer:
        for message in islice(cycle(sorts()), number):
            given = {"content_type": "application/json", "content_encoding": "utf-8", **message}
            producer.publish(given.pop("body"), exchange="", routing_key=queue, serializer=None, **given)
