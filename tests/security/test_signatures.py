"""Where messages are signed, what decides is: on running workers, on both engines. celery_kit/base/signing.py"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import SecurityError
from kombu import Connection, Consumer, Exchange, Producer
from redis import Redis

from celery_kit import Kit
from celery_kit.base.keys import Keys
from celery_kit.base.messages import CONTROL, EVENT, SIGNATURE
from celery_kit.base.security import Signing
from celery_kit.base.signing import Signer
from celery_kit.brokers.contract import REPLAYED, DeadLetter
from celery_kit.operate.look.dead import each, letters
from celery_kit.produce.alike import Call
from celery_kit.produce.bulk import Sender
from celery_kit.worker.signatures import PREFIX
from tests.harness.certificates import certificate
from tests.harness.waiting import until
from tests.harness.workers import Process
from tests.security.conftest import Target
from tests.security.hostile import Hostile, body, good

#: Each pool's way of running tasks, on each engine.
SOME = [
    ("prefork", "fast"),
    ("gevent", "plain"),
    ("prefork", "plain"),
    ("gevent", "fast"),
    ("threads", "fast"),
    ("solo", "plain"),
]
if os.environ.get("QUICK"):
    SOME = SOME[:2]
WINDOW = 60
TASK = "security.touch"


class Signed:
    """A target whose messages are signed: its keys, and an app and a signer of this process."""

    def __init__(self, target: Target, kind: str) -> None:
        self.target, self.folder, self.kind = target, target.folder, kind
        (self.folder / "store").mkdir()
        self.new_key("first")
        self.environ = {
            "SECURITY_KEY": str(self.folder / "key"),
            "SECURITY_CERTIFICATE": str(self.folder / "certificate"),
            "SECURITY_CERT_STORE": str(self.folder / "store"),
            "SECURITY_WINDOW": str(WINDOW),
            "WORKER_LEASE": "3",
        }
        files = str(self.folder / "key"), str(self.folder / "certificate"), str(self.folder / "store")
        self.settings = Signing(*files, WINDOW).settings(["json"])
        self.app = self.made("fast")
        self.signer = Signer(Keys(*files), WINDOW)
        each(self.app, lambda _: "drop")

    def made(self, engine: str) -> Any:
        """A sender's app on an engine."""
        app = Kit("signed", set_as_current=False)
        urls = self.target.urls
        servers = {"broker_url": urls["CELERY_BROKER_URL"], "result_backend": urls["CELERY_RESULT_BACKEND"]}
        app.conf.update(engine=engine, **servers, **self.settings)
        return app

    def new_key(self, name: str) -> None:
        """Trust a new certificate, and sign by its key from now on."""
        key, made = certificate(name, kind=self.kind)
        (self.folder / "store" / f"{name}.pem").write_bytes(made)
        time.sleep(1.5 if (self.folder / "key").exists() else 0)  # as docs/security.md says: every process trusts it by then
        for file, content in (("key", key), ("certificate", made)):
            (self.folder / f"{file}.new").write_bytes(content)
            (self.folder / f"{file}.new").replace(self.folder / file)

    @contextmanager
    def worker(self, pool: str, engine: str, queue: str, **environ: str) -> Iterator[Process]:
        self.app = self.made(engine)  # a plain worker on Redis does not move what a fast sender has delayed
        with self.target.worker(pool, engine, queue, **self.environ, **environ) as one:
            yield one

    def message(self, what: str = "good", task: str = TASK, **headers: Any) -> Hostile:
        """A message that is signed as it is."""
        named = good(task, **headers)
        properties = {"correlation_id": named["id"], "reply_to": ""}
        content = body()
        signed = self.signer.headers(named, properties, content, "application/json", "utf-8")
        return Hostile(what, signed, properties, content)

    def forged(self) -> list[Hostile]:
        """Messages that were signed, of which something is another afterwards."""
        one = self.message()
        changes: list[dict[str, Any]] = [
            {"task": "security.canary"}, {"id": "other"}, {"root_id": "other"}, {"parent_id": "other"}, {"group": "other"},
            {"retries": 3}, {"timelimit": [1, 1]}, {"ignore_result": True}, {"expires": "2099-01-01T00:00:00+00:00"},
            {"eta": "2020-01-01T00:00:00+00:00"}, {"shadow": "other"}, {"chord": {"task": TASK, "options": {}}},
            {SIGNATURE: ""}, {"x-delivery-count": 30, "id": "other"},
        ]  # fmt: skip
        found = [replace(one, what=str(change), headers=one.headers | change) for change in changes]
        eta = self.message(eta="2099-01-01T00:00:00+00:00")
        found.append(replace(eta, what="without eta", headers=eta.headers | {"eta": None}))
        found.append(replace(one, what="body", body=body((1, 2))))
        found.append(replace(one, what="reply_to", properties=one.properties | {"reply_to": "other"}))
        found.append(replace(one, what="of another", headers=one.headers | {SIGNATURE: self.message().headers[SIGNATURE]}))
        return found

    def old(self, monkeypatch: pytest.MonkeyPatch) -> Hostile:
        now = time.time()
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: now - WINDOW - 5)
            return self.message("old")

    def canary(self, queue: str) -> None:
        sent = [self.app.send_task("security.canary", [number], queue=queue) for number in range(4)]
        assert [one.get(timeout=60) for one in sent] == list(range(4))

    def dead(self, number: int) -> list[DeadLetter]:
        """The dead letters, once there are so many."""
        return (
            until(f"there are {number} dead letters", lambda: len(letters(self.app)) == number and letters(self.app), 30) or []
        )

    def was_acknowledged(self, one: Hostile, queue: str) -> bool:
        store = self.app.signature_store
        assert store
        return bool(store.are_there([PREFIX + f"{one.headers[SIGNATURE].split()[1]}.{queue}"])[0])

    def tell(self, place: Exchange, text: str, content_type: str, key: str = "") -> None:
        """Publish what a client without Celery would."""
        with Connection(self.app.conf.broker_url) as connection:
            producer = Producer(connection, place, auto_declare=False)
            producer.publish(text, routing_key=key, content_type=content_type, content_encoding="utf-8", declare=[place])


@pytest.fixture(params=["ed25519", "rsa"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "rsa" and os.environ.get("QUICK"):
        pytest.skip("the same code but for two lines, which the unit tests run with both kinds of keys")
    return str(request.param)


@pytest.fixture
def signed(target: Target) -> Signed:
    return Signed(target, "ed25519")


@pytest.mark.parametrize(("pool", "engine"), SOME)
def test_what_decides_cannot_be_changed(
    signed: Signed, queue: str, pool: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Task, id, ETA, retries, limits, address or body changed, no signature, or an old one: a dead letter, and a line."""
    forged = [*signed.forged(), signed.old(monkeypatch)]
    with signed.worker(pool, engine, queue) as worker:
        signed.canary(queue)
        assert signed.target.send(queue, iter(forged)) == len(forged)
        signed.canary(queue)
        found = signed.dead(len(forged))
        assert {letter.kind for letter in found} == {"unsigned"}, found
        assert worker.said.count("signature refused") == len(forged)
        assert not signed.target.runs(queue)
        assert signed.target.send(queue, iter([signed.message()])) == 1
        until("a signed one runs", lambda: signed.target.runs(queue) == 1, 30)
        assert len(letters(signed.app)) == len(forged)
        assert signed.app.AsyncResult("other").state == "PENDING"


@pytest.mark.parametrize(("pool", "engine"), SOME)
def test_a_message_runs_once(signed: Signed, queue: str, pool: str, engine: str) -> None:
    """The same message again, once the first is acknowledged, is a dead letter: on this worker, and on another one."""
    one = signed.message()
    with signed.worker(pool, engine, queue):
        signed.target.send(queue, iter([one]))
        until("it is acknowledged", lambda: signed.was_acknowledged(one, queue), 30)
        signed.target.send(queue, iter([one]))
        (letter,) = signed.dead(1)
    with signed.worker(pool, engine, queue):
        signed.target.send(queue, iter([one]))
        signed.canary(queue)
        found = signed.dead(2)
        assert {(one.kind, one.reason) for one in found} == {("unsigned", REPLAYED)}
        assert letter in found
        each(signed.app, lambda _: "retry")
        signed.canary(queue)
        assert len(signed.dead(2)) == 2  # sent back, they are refused again
        assert signed.target.runs(queue) == 1


@pytest.mark.parametrize(("pool", "engine"), SOME)
def test_what_the_broker_delivers_again_is_no_replay(signed: Signed, queue: str, pool: str, engine: str) -> None:
    """A task whose worker was killed runs again. A retry, a delayed task and a failed task that is sent back run as well."""
    with signed.worker(pool, engine, queue) as worker:
        held = signed.app.send_task("security.hold", queue=queue)
        until("it runs", lambda: signed.target.runs(queue) == 1, 30)
        worker.kill()
    runs = signed.folder / f"{queue}.runs"
    Path(f"{runs}.go").touch()
    with signed.worker(pool, engine, queue):
        until("it runs again", lambda: signed.target.runs(queue) == 2, 90)
        held.get(timeout=30)
        later = signed.app.send_task("security.canary", [7], queue=queue, countdown=3)
        tried = signed.app.send_task("security.again", queue=queue)
        assert tried.get(timeout=30) == 1 and later.get(timeout=30) == 7
        assert signed.target.runs(queue) == 4
        assert not letters(signed.app)
        wrong = signed.app.send_task("security.canary", ["too", "many"], queue=queue)
        (letter,) = signed.dead(1)
        assert (letter.kind, letter.id) == ("failed", wrong.id)
        each(signed.app, lambda _: "retry")
        (again,) = signed.dead(1)  # sent back, it runs, and fails again
        assert (again.kind, again.id) == ("failed", wrong.id)


def as_sent(*numbers: int) -> None:
    """A sender's task of the name that the worker has: its options are read."""


@pytest.mark.parametrize(("pool", "engine"), SOME[:2])
def test_what_workers_send_is_signed(signed: Signed, queue: str, pool: str, engine: str) -> None:
    """Chains, groups and chords run, whose later tasks workers send. So do those of `send_many`."""
    with signed.worker(pool, engine, queue):

        def add(*numbers: int) -> Any:
            return signed.app.signature("security.add", numbers, queue=queue)

        flows = {13: chain(add(1, 2), add(10)), 6: chord([add(1), add(2), add(3)], add()), 9: group([add(4, 5)])}
        for value, flow in flows.items():
            assert flow.apply_async().get(timeout=60) in (value, [value])
        signed.app.task(name="security.add")(as_sent)
        arguments = [(number,) for number in range(20)]
        with signed.app.producer_or_acquire() as producer:
            ids = Sender(signed.app, signed.app.tasks["security.add"], {"queue": queue}, producer).send(map(Call, arguments))
        assert [signed.app.AsyncResult(one).get(timeout=60) for one in ids] == list(range(20))
        assert not letters(signed.app)


@pytest.mark.parametrize(("pool", "engine"), SOME[:2])
def test_a_result_is_of_its_task_alone(signed: Signed, queue: str, pool: str, engine: str) -> None:
    """A result that is copied to another id is refused, and so is one that is not signed."""
    server: Any = Redis.from_url(signed.target.urls["CELERY_RESULT_BACKEND"])
    with signed.worker(pool, engine, queue):
        sent = signed.app.send_task("security.canary", [1], queue=queue)
        assert sent.get(timeout=30) == 1
    stored = server.get(f"celery-task-meta-{sent.id}")
    server.set("celery-task-meta-other", stored)
    with pytest.raises(SecurityError, match="was signed for"):
        assert signed.app.AsyncResult("other").state
    server.set("celery-task-meta-plain", '{"status": "SUCCESS", "result": 1, "task_id": "plain", "children": []}')
    with pytest.raises(SecurityError, match="is no signed result"):
        assert signed.app.AsyncResult("plain").state


@pytest.mark.parametrize(("pool", "engine"), SOME)
def test_commands_and_events_have_to_be_signed(
    signed: Signed, queue: str, pool: str, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Unsigned, of another purpose, old, or again: each is ignored with a line."""
    shutdown = '{"method": "shutdown", "arguments": {}, "destination": null}'
    limit = {"method": "rate_limit", "arguments": {"task_name": TASK, "rate_limit": "100/s"}, "destination": None}
    kind, commands = f"application/x-{CONTROL}", Exchange("celery.pidbox", "fanout", durable=False)
    with signed.worker(pool, engine, queue) as worker:
        until("a signed ping is answered", lambda: signed.app.control.ping(timeout=2), 60)
        signed.tell(commands, shutdown, "application/json")
        signed.tell(commands, shutdown, kind)
        signed.tell(commands, signed.signer.seal(EVENT)({"method": "shutdown"}), kind)
        until("each is ignored", lambda: worker.said.count("a command is ignored") == 3, 30)
        sealed = signed.signer.seal(CONTROL)(limit)
        for _ in range(3):
            signed.tell(commands, sealed, kind)
        until("the first is carried out", lambda: worker.said.count("New rate limit") == 1, 30)
        until("the others are ignored", lambda: worker.said.count("it came before") == 2, 30)
        seen: list[dict[str, Any]] = []
        with signed.app.connection_for_read() as connection:
            receiver = signed.app.events.Receiver(connection, handlers={"*": seen.append})
            made = partial(Consumer, connection.default_channel, on_decode_error=receiver.on_decode_error)  # a ConsumerMixin's
            (consumer,) = receiver.get_consumers(made, None)
            consumer.consume()

            def arrived(enough: Callable[[], bool]) -> bool:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=1)
                return enough()

            until("the worker's own arrive", lambda: arrived(lambda: bool(seen)), 30)
            for text, form in (
                ('{"type": "worker-heartbeat", "hostname": "forged"}', "application/json"),
                (signed.signer.seal(CONTROL)({"type": "worker-heartbeat", "hostname": "forged"}), f"application/x-{EVENT}"),
            ):
                signed.tell(receiver.exchange, text, form, "worker.heartbeat")
            ignored = partial(arrived, lambda: sum(line.startswith("an event is ignored") for line in caplog.messages) == 2)
            until("the others are ignored", ignored, 30)
            assert "forged" not in {event["hostname"] for event in seen}
        signed.canary(queue)
        assert worker.alive and worker.said.count("New rate limit") == 1
        assert "onnection to broker lost" not in worker.said


@pytest.mark.parametrize(("pool", "engine"), SOME[:2])
def test_new_keys_while_tasks_run(signed: Signed, queue: str, pool: str, engine: str, kind: str) -> None:
    """The key is replaced three times while tasks are sent and run, and the oldest is no longer trusted at the end: none is
    lost, none refused, and no process is restarted.
    """
    signed.kind = kind
    results: list[Any] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            results.append(signed.app.send_task("security.canary", [len(results)], queue=queue))
            time.sleep(0.01)  # a steady load, not as much as the machine can

    with signed.worker(pool, engine, queue) as worker:
        signed.canary(queue)
        sending = threading.Thread(target=send)
        sending.start()
        try:
            for name in ("second", "third", "fourth"):
                signed.new_key(name)
                time.sleep(1.5)  # tasks that each key signs
        finally:
            stop.set()
            sending.join()
        assert [one.get(timeout=60) for one in results] == list(range(len(results)))
        (signed.folder / "store" / "first.pem").unlink()
        signed.canary(queue)
        until("the last key is in use", lambda: "'fourth" in worker.said, 30)
        print(f"\n{pool} {engine} {kind}: {len(results)} tasks under 4 keys")
        assert not letters(signed.app) and len(results) > 10
        assert "signature refused" not in worker.said and worker.said.count("ready.") == 1
