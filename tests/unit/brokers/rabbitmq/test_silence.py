"""A broker that no longer answers: every wait for it has a limit. A socket plays it, and sends only what a test tells it to."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from struct import pack, unpack
from typing import Any

import pytest
from amqp import Message, spec
from amqp.exceptions import NotFound, RecoverableConnectionError

from celery_kit.base.messages import Part, RefusedError, Sample
from celery_kit.brokers.rabbitmq import fast_connection, transport

SOON = 0.05  # seconds
#: Seconds after which the broker ends the connection: whoever waits without an end fails by that, and does not hang.
PATIENCE = 5


def method(channel: int, sig: tuple[int, int], arguments: bytes = b"") -> bytes:
    """A frame with an AMQP method, as bytes."""
    return pack(">BHI2H", 1, channel, 4 + len(arguments), *sig) + arguments + b"\xce"


HELLO = method(0, spec.Connection.Start, b"\0\x09" + pack(">I", 0) + pack(">I", 5) + b"PLAIN" + pack(">I", 5) + b"en_US")
BLOCKED = method(0, spec.Connection.Blocked, b"\x03low")
ACK = method(1, spec.Basic.Ack, pack(">QB", 1, 0))
NACK = method(1, spec.Basic.Nack, pack(">QB", 1, 0))


class Broker:
    """`answers`: the answer to each method of the client; others get none."""

    def __init__(self) -> None:
        self.answers = {
            spec.Connection.StartOk: method(0, spec.Connection.Tune, pack(">HIH", 0, 131_072, 0)),
            spec.Connection.Open: method(0, spec.Connection.OpenOk, b"\0"),
            spec.Channel.Open: method(1, spec.Channel.OpenOk, pack(">I", 0)),
            spec.Confirm.Select: method(1, spec.Confirm.SelectOk),
        }
        self.server = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.getsockname()[1]}"

    def serve(self) -> None:
        client, _ = self.server.accept()
        client.settimeout(PATIENCE)
        with client, client.makefile("rb") as heard, suppress(OSError):
            heard.read(len(b"AMQP\0\0\x09\x01"))
            client.sendall(HELLO)
            while header := heard.read(7):
                kind, _, size = unpack(">BHI", header)
                payload = heard.read(size + 1)
                if kind == 1:
                    client.sendall(self.answers.get(unpack(">2H", payload[:4]), b""))


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.server.close()


def connected(kind: Any, broker: Broker, **options: Any) -> Any:
    connection = kind(broker.address, connect_timeout=PATIENCE, **options)
    connection.connect()
    return connection


ENGINES = ("plain", "fast")
KINDS = (transport.Connection, fast_connection.Connection)


@pytest.fixture(params=KINDS, ids=ENGINES)
def connection(request: pytest.FixtureRequest, broker: Broker) -> Iterator[Any]:
    """A connection of either engine."""
    connection = connected(request.param, broker)
    yield connection
    connection.collect()
    broker.thread.join(PATIENCE)


def test_a_connection_is_closed_if_an_answer_does_not_come(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = connection.channel()
    monkeypatch.setattr(transport, "ANSWER", SOON)
    with pytest.raises(RecoverableConnectionError, match="has not answered in time"):
        channel.queue_declare("some")
    assert not connection.connected


def test_a_connection_is_closed_if_its_channel_does_not_open(
    broker: Broker, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del broker.answers[spec.Channel.Open]
    monkeypatch.setattr(transport, "ANSWER", SOON)
    with pytest.raises(RecoverableConnectionError, match="has not answered in time"):
        connection.channel()
    assert not connection.connected


@pytest.mark.parametrize("part", ["connection", "channel"])
def test_the_answer_to_a_close_has_its_own_time_limit(connection: Any, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    leaving = connection.channel() if part == "channel" else connection
    monkeypatch.setattr(transport, "GOODBYE", SOON)
    with pytest.raises(RecoverableConnectionError, match="has not answered in time"):
        leaving.close()
    assert not connection.connected


def test_a_callers_own_timeout_leaves_the_connection_open(connection: Any) -> None:
    channel = connection.channel()
    with pytest.raises(TimeoutError):
        channel.wait(spec.Queue.DeclareOk, timeout=SOON)
    assert connection.connected


@pytest.fixture(params=KINDS, ids=ENGINES)
def producer(request: pytest.FixtureRequest, broker: Broker) -> Iterator[Any]:
    """A producer's channel."""
    connection = connected(request.param, broker, confirm_publish=True)
    channel = connection.channel()
    channel.confirm_select()
    yield channel
    connection.collect()
    broker.thread.join(PATIENCE)


def publish(channel: Any) -> None:
    """Publish a message, in the engine's own way."""
    if like := getattr(channel, "publish_like", None):
        assert like(Part(Sample("", None, "", "", {}, {}, "", "some", False), "id", b"some", "", "", 0, ""), PATIENCE)
    else:
        channel.basic_publish(Message("some"), routing_key="some")


def test_a_producer_gets_an_error_if_no_answer_comes(producer: Any) -> None:
    producer.bound(SOON)
    with pytest.raises(RecoverableConnectionError, match=r"no answer from the broker within 0\.05 s$"):
        producer.queue_declare("some")


def test_a_producers_error_names_the_brokers_alarm(broker: Broker, producer: Any) -> None:
    broker.answers[spec.Basic.Publish] = ACK + BLOCKED
    producer.bound(PATIENCE)
    publish(producer)
    producer.bound(SOON)
    with pytest.raises(RecoverableConnectionError, match="it blocks publishers: it has a memory or disk alarm"):
        producer.queue_declare("some")


def test_a_producer_gets_an_error_if_its_message_is_refused(broker: Broker, producer: Any) -> None:
    broker.answers[spec.Basic.Publish] = NACK
    producer.bound(PATIENCE)
    with pytest.raises(RefusedError, match="refused the message"):
        publish(producer)


def test_a_method_that_arrives_before_a_confirm_is_handled(broker: Broker, producer: Any) -> None:
    broker.answers[spec.Basic.Publish] = BLOCKED + ACK
    producer.bound(PATIENCE)
    publish(producer)
    broker.answers.clear()
    with pytest.raises(RecoverableConnectionError, match="it blocks publishers"):
        producer.wait(spec.Queue.DeclareOk, timeout=SOON)


def test_a_channel_that_is_closed_before_a_confirm_raises(broker: Broker, producer: Any) -> None:
    broker.answers[spec.Basic.Publish] = method(1, spec.Channel.Close, pack(">HB", 404, 4) + b"gone" + pack(">2H", 60, 40))
    producer.bound(PATIENCE)
    with pytest.raises(NotFound, match="gone"):
        publish(producer)


@pytest.mark.parametrize("unknown", [None, False, True])
def test_a_message_goes_whatever_a_task_says_of_its_options(broker: Broker, producer: Any, unknown: bool | None) -> None:
    """For an option that a task does not have, Celery passes None, where AMQP has a bit."""
    broker.answers[spec.Basic.Publish] = ACK
    producer.bound(PATIENCE)
    producer.basic_publish(Message("some"), exchange="", routing_key="some", mandatory=unknown, immediate=unknown)
