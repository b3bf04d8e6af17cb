"""What is put at the source of a move, and what is found at each end, read without the kit's own code for moving."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from kombu import Connection, Queue
from redis import Redis

from celery_kit import brokers
from celery_kit.base.messages import DEAD, FAILED, NOTE
from celery_kit.brokers.contract import DeadLetter, moment
from celery_kit.operate.look.migrate import Side
from tests.harness.kit import kit

TASK = "mail.send_email"
#: Headers and properties that belong to a broker, or to a dead letter.
OWN = ("x-", NOTE, "redelivered")


@dataclass(frozen=True)
class Place:
    """A broker's database or virtual host. `management`: the port of its management interface, if it has one."""

    url: str
    management: int | None = None

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a process that uses it as its broker."""
        port = {"RABBITMQ_MANAGEMENT_PORT": str(self.management)} if self.management else {}
        return {"CELERY_BROKER_URL": self.url, "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/1", **port}

    def app(self) -> Any:
        """An app of the kit that uses it."""
        return kit(self.environ, f"moves-{uuid4().hex[:6]}")

    def side(self, what: str) -> Side:
        """As the tool takes it."""
        return Side(what, self.url, self.environ)


def fill(
    place: Place, queued: int, delayed: int = 0, dead: int = 0, failed: int = 0, queues: tuple[str, ...] = ("celery",)
) -> None:
    """Send tasks, and store dead letters and failed tasks, by the kit's own means."""
    app = place.app()
    if place.url.startswith("redis"):
        sign(place)
    for queue in queues:
        with app.connection_for_write() as connection:
            app.amqp.queues[queue](connection.default_channel).declare()
    for number in range(queued):
        app.send_task(TASK, [str(number)], queue=queues[number % len(queues)], priority=(None, 3, 9)[number % 3])
    for number in range(delayed):
        app.send_task(TASK, [str(number)], countdown=3_600 + number, expires=7_200, queue=queues[number % len(queues)])
    letters(app, place, "rejected", dead)
    letters(app, place, "failed", failed)


def sign(place: Place) -> None:
    """Leave the sign of a worker that moves delayed tasks, as it does: producers then add such tasks to the set."""
    Redis.from_url(place.url).set("_celery-kit.delayed.movers", 1, ex=600)


def letters(app: Any, place: Place, kind: str, number: int, task: str = TASK, first: int = 0) -> int:
    """Store dead letters, or failed tasks, of messages that are sent, taken and acknowledged. Returns the next number."""
    broker = brokers.room(place.url)
    dead = broker.letters() if broker else None
    assert dead
    dead.prepare(app)
    name = f"of-{kind}"
    with app.connection_for_write() as connection:
        app.amqp.queues[name](connection.default_channel).declare()
        for one in range(number):
            app.send_task(task, [first + one], queue=name)
        queue = Queue(name)(connection.channel())
        for _ in range(number):
            message = until_got(queue)
            about = (message.headers["id"], task, "celery", "a test", moment(), 1, kind)
            letter = DeadLetter(*about, worker="w", traceback="Traceback …")
            if kind == "failed":
                keeps = dead.failed(app, connection)
                keeps.put([(message, letter)])
                keeps.close()
            else:
                dead.put(app, message, letter)
            message.ack()
    return first + number


def until_got(queue: Any) -> Any:
    """The next message of a queue, which may take a moment to arrive."""
    deadline = time.monotonic() + 30
    while (message := queue.get()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return message


def about(place: str, queue: str, headers: dict[str, Any], properties: dict[str, Any], body: bytes, letter: Any = None) -> str:
    """What of a message must be the same at both ends, as text."""
    same = {name: value for name, value in headers.items() if not name.startswith(OWN) and value is not None}
    to = [properties.get(name) or "" for name in ("correlation_id", "reply_to")]
    parts = [place, queue, same, to, properties.get("priority") or 0, body.decode(), letter]
    return json.dumps(parts, sort_keys=True, default=str)


def found(place: Place) -> Counter[str]:
    """All that is there, as `about` describes it, with how often it is there."""
    return Counter(_in_redis(place.url) if place.url.startswith("redis") else _in_rabbitmq(place))


def _in_redis(url: str) -> Iterator[str]:
    client: Any = Redis.from_url(url)
    for key in map(bytes.decode, client.keys("*")):
        if client.type(key) == b"list":
            assert not key.startswith("_celery.migrating"), "a claim is left"
            yield from (_item("queue", key.split("\x06")[0], item) for item in client.lrange(key, 0, -1))
    for member in client.zrange("_celery-kit.delayed", 0, -1):
        key, _, item = member.partition(b"\n")
        yield _item("delayed", key.decode().split("\x06")[0], item)
    for name in (DEAD, FAILED):
        for record in map(json.loads, client.hvals(name)):
            yield _item(name, record["letter"]["queue"], record["item"].encode(), record["letter"])


def _item(place: str, queue: str, item: bytes, letter: Any = None) -> str:
    payload = json.loads(item)
    return about(place, queue, payload["headers"], payload["properties"], b64decode(payload["body"]), letter)


def _in_rabbitmq(place: Place) -> Iterator[str]:
    from celery_kit.brokers.rabbitmq.facts import management

    with Connection(place.url) as connection:
        connection.connect()
        names = [one["name"] for one in management(connection, place.environ, f"queues/{connection.virtual_host}")]
        channel: Any = connection.channel()
        for name in sorted(names):
            if name.endswith((".revoked", "pidbox")):
                continue
            if name.startswith("celery.migrating"):  # it cannot be read by this method
                left = channel.queue_declare(name, passive=True).message_count
                assert not left or name.endswith("noted"), f"{name} is not empty"
                continue
            while raw := channel.basic_get(name):
                headers = raw.properties.get("application_headers") or {}
                letter = headers.get(NOTE)
                kind = "delayed" if name.startswith("celery_delayed") else name if letter else "queue"
                queue = letter["queue"] if letter else ".".join(raw.delivery_info["routing_key"].split(".")[28:]) or name
                body = raw.body.encode() if isinstance(raw.body, str) else raw.body
                yield about(kind, queue, headers, raw.properties, body, letter)


def difference(before: Counter[str], after: Counter[str]) -> dict[str, Any]:
    """What is lost, twice, or another than before; empty if nothing is."""
    twice = {one: number for one, number in after.items() if number > before[one]}
    return {name: value for name, value in {"lost": before - after, "twice, or changed": twice}.items() if value}


def wherever(found: Counter[str]) -> Counter[str]:
    """The same without the place: a task with an ETA waits in a queue of plain Celery's, and elsewhere in the kit's broker."""
    return Counter({json.dumps(json.loads(one)[1:]): number for one, number in found.items()})


__all__ = ["Place", "difference", "fill", "found", "sign", "wherever"]
