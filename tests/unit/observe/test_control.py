"""Where messages are signed, so are commands of remote control and events; unsigned ones are ignored with a line."""

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from kombu import Consumer, Exchange, Producer

from celery_kit import Kit
from celery_kit.base.messages import CONTROL, EVENT
from celery_kit.base.security import Signing, signer
from celery_kit.observe.control import Node
from tests.unit.base.test_signing import files


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    made: Any = Kit("control", set_as_current=False, broker="memory://", backend="cache+memory://")
    made.conf.update(control_exchange=uuid4().hex, event_exchange=uuid4().hex)
    made.conf.update(Signing(*files(tmp_path, kind="ed25519")).settings(["json"]))
    yield made
    made.close()


def publish(app: Any, exchange: Exchange, text: str, content_type: str, key: str = "") -> None:
    with app.connection_for_write() as connection:
        Producer(connection, exchange, auto_declare=False).publish(
            text, routing_key=key, content_type=content_type, content_encoding="utf-8", declare=[exchange]
        )


def test_a_node_carries_out_signed_commands_once(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    done: list[object] = []
    mailbox = app.control.mailbox
    assert (mailbox.accept, mailbox.serializer, mailbox.node_cls) == ([CONTROL], CONTROL, Node)
    with app.connection_for_read() as connection:
        bound = mailbox(connection)
        node = bound.Node("me", channel=connection.channel(), handlers={"note": lambda _, **given: done.append(given)})
        node.listen()
        command: dict[str, Any] = {"method": "note", "arguments": {"a": 1}, "destination": ["me"]}
        found = signer(app)
        assert found
        sealed = found.seal(CONTROL)(command)
        kind = f"application/x-{CONTROL}"
        with caplog.at_level(logging.ERROR):
            for text, content_type in (
                (sealed, kind),
                (sealed, kind),
                (sealed.replace('"a": 1', '"a": 2'), kind),
                (found.seal(EVENT)(command), kind),
                ('{"method": "note"}', "application/json"),
            ):
                publish(app, mailbox.exchange, text, content_type)
                connection.drain_events(timeout=1)
        assert done == [{"a": 1}]
        assert [line.partition(" is ")[0] for line in caplog.messages] == ["remote control: a command"] * 4
        app.control.broadcast("note", {"a": 3}, connection=connection)
        connection.drain_events(timeout=1)
        assert done == [{"a": 1}, {"a": 3}]


def test_a_node_forgets_commands_that_are_too_old_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    node, now = Node("me", handlers={}, mailbox=SimpleNamespace(clock=SimpleNamespace(adjust=print))), time.monotonic()
    monkeypatch.setattr(node, "dispatch", lambda **_: None, raising=False)
    for number in range(100):
        monkeypatch.setattr(time, "monotonic", lambda number=number: now + number)
        command = type("Command", (dict,), {"nonce": str(number)})(method="x")
        node.handle_message(command)
    assert len(node._seen) <= 61


def test_a_receiver_takes_signed_events_alone(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        assert receiver.accept == {EVENT}
        made = partial(
            Consumer, connection.default_channel, on_decode_error=receiver.on_decode_error
        )  # as a ConsumerMixin does
        (consumer,) = receiver.get_consumers(made, None)
        consumer.consume()
        for text, kind in (
            ('{"type": "worker-heartbeat", "hostname": "x"}', "application/json"),
            ('{"type": "worker-heartbeat", "hostname": "x"}', f"application/x-{EVENT}"),
        ):
            publish(app, receiver.exchange, text, kind, "worker.heartbeat")
            connection.drain_events(timeout=1)
        with app.events.Dispatcher(connection, hostname="me") as dispatcher:
            dispatcher.send("worker-heartbeat", freq=2)
            connection.drain_events(timeout=1)
    assert [event["hostname"] for event in seen] == ["me"]
    assert sum(line.startswith("an event is ignored") for line in caplog.messages) == 2


def test_without_keys_they_are_celerys(tmp_path: Path) -> None:
    app: Any = Kit("control", set_as_current=False, broker="memory://")
    assert app.control.mailbox.serializer == "json" and app.control.mailbox.accept == ["json"]
    with app.connection_for_read() as connection:
        assert app.events.Receiver(connection).accept == {"json"}
