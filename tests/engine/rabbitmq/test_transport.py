"""RabbitMQ's transport of ENGINE=fast on a real broker: no message is lost, and none is acknowledged instead of another."""

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from amqp.exceptions import NotFound
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.asynchronous import Hub

from tests.engine.rabbitmq.conftest import Urls
from tests.engine.rabbitmq.proxy import Proxy

TRANSPORT = "celery_kit.brokers.rabbitmq.transport:Transport"


class Client:
    """A connection, its own queue, and its consumer's messages, by the numbers in their bodies."""

    def __init__(self, url: str, queue: Queue, **options: Any) -> None:
        self.connection = Connection(url, transport=TRANSPORT, transport_options={"engine": "fast"}, **options)
        self.queue = queue
        self.got: list[int] = []
        self.messages: dict[int, Any] = {}
        self.hub: Hub | None = None
        self.channel: Any = self.connection.default_channel
        self.consume()

    def consume(self) -> None:
        self.consumer = Consumer(self.channel, [self.queue], on_message=self.take, accept=["json"])
        self.consumer.consume()

    def take(self, message: Any) -> None:
        number = message.decode()
        self.got.append(number)
        self.messages[number] = message

    def until(self, count: int) -> "Client":
        """Wait for a number of messages."""
        while len(self.got) < count:
            self.connection.drain_events(timeout=10)
        return self

    def on_a_loop(self) -> Hub:
        """Let a worker's loop handle the connection."""
        self.hub = Hub()
        self.connection.transport.register_with_event_loop(self.connection.connection, self.hub)
        return self.hub

    def close(self) -> None:
        self.connection.release()
        if self.hub:
            self.hub.close()


@pytest.fixture
def queue(urls: Urls) -> Iterator[Queue]:
    """A queue with the messages 1 to 100. A quorum queue would drop acknowledgements just before a connection is closed."""
    name = f"engine.{uuid4()}"
    queue = Queue(name, Exchange(""), name, queue_arguments={"x-queue-type": "classic"})
    with Connection(urls.broker) as connection:
        with Producer(connection) as producer:
            for number in range(1, 101):
                producer.publish(number, routing_key=name, declare=[queue], serializer="json")
        yield queue
        queue(connection.default_channel).delete()


def left(urls: Urls, queue: Queue) -> list[int]:
    """The messages that are left on the broker, by kombu's own transport."""
    with Connection(urls.broker) as connection:
        found = queue(connection.default_channel)
        return sorted(message.decode() for message in iter(lambda: found.get(accept=["json"]), None))


def test_acknowledged_messages_are_gone_and_others_come_again(urls: Urls, queue: Queue) -> None:
    """Acknowledgements may come in any order, with gaps."""
    client = Client(urls.broker, queue).until(100)
    for number in (5, 1, 2, 3, 9, *range(50, 101)):
        client.messages[number].ack()
    client.close()
    assert left(urls, queue) == [4, 6, 7, 8, *range(10, 50)]


def test_the_loop_sends_acknowledgements_together(urls: Urls, queue: Queue) -> None:
    """One frame is for a hundred consecutive messages. The loop's tick is enough to send it."""
    client = Client(urls.broker, queue)
    hub = client.on_a_loop()
    connection: Any = client.connection.connection
    while len(client.got) < 100:
        hub.run_once()
    before = connection.bytes_sent
    for number in reversed(range(1, 101)):
        client.messages[number].ack()
    assert connection.bytes_sent == before
    connection.on_tick()
    assert connection.bytes_sent == before + 1
    client.close()
    assert left(urls, queue) == []


def test_what_was_read_ahead_is_handled_without_further_traffic(urls: Urls, queue: Queue) -> None:
    """A wait for one answer also reads a hundred messages. The socket has no further event for the loop."""
    client = Client(urls.broker, queue).until(1)
    hub = client.on_a_loop()
    for _ in range(100):
        if len(client.got) == 100:
            break
        hub.run_once()
    client.close()
    assert len(client.got) == 100


def test_rejected_messages_come_again_or_are_dropped(urls: Urls, queue: Queue) -> None:
    client = Client(urls.broker, queue).until(100)
    client.messages[1].ack()
    client.messages[2].reject(requeue=True)
    client.messages[3].reject(requeue=False)
    client.messages[4].ack()
    client.until(101)
    assert client.got[-1] == 2
    client.close()
    assert left(urls, queue) == [2, *range(5, 101)]


def test_an_acknowledgement_from_before_the_channels_error_speaks_for_no_other_message(urls: Urls, queue: Queue) -> None:
    """The broker's tags begin at 1 again. Plain kombu acknowledges another message with that tag, or gets an error 406."""
    client = Client(urls.broker, queue).until(100)
    old = dict(client.messages)
    with pytest.raises(NotFound):
        client.channel.queue_declare("no such queue", passive=True)
    client.consume()
    client.until(200)
    for message in old.values():
        message.ack()
    client.messages[7].ack()
    client.close()
    assert left(urls, queue) == [number for number in range(1, 101) if number != 7]


def test_messages_that_need_no_acknowledgement_do_not_hold_others_back(urls: Urls, queue: Queue) -> None:
    client = Client(urls.broker, queue).until(100)
    with Connection(urls.broker) as other:
        events = Queue(f"engine.{uuid4()}", Exchange(""), auto_delete=True, durable=False)
        heard: list[int] = []
        with client.channel.connection.channel() as channel:
            consumer = Consumer(channel, [events], on_message=lambda message: heard.append(message.decode()), no_ack=True)
            consumer.consume()
            with Producer(other) as producer:
                producer.publish(0, routing_key=events.name, serializer="json")
            while not heard:
                client.connection.drain_events(timeout=10)
            assert not channel.unacked
    for number in range(1, 101):
        client.messages[number].ack()
    client.close()
    assert left(urls, queue) == []


def test_all_at_once(urls: Urls, queue: Queue) -> None:
    """kombu's `multiple`, with single acknowledgements before and after."""
    client = Client(urls.broker, queue).until(100)
    client.messages[3].ack()
    client.messages[50].ack(multiple=True)
    client.messages[52].ack()
    client.close()
    assert left(urls, queue) == [51, *range(53, 101)]


@pytest.fixture
def tls_port(urls: Urls, tmp_path: Path) -> Iterator[int]:
    """The broker behind TLS: a port that decrypts and forwards."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "1",
         "-subj", "/CN=localhost"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    broker = urlsplit(urls.broker)
    proxy = Proxy(str(broker.hostname), int(broker.port or 0), context)
    yield proxy.port
    proxy.close()


def test_over_tls(urls: Urls, queue: Queue, tls_port: int) -> None:
    url = urlsplit(urls.broker)
    secure = url._replace(netloc=f"{url.username}:{url.password}@127.0.0.1:{tls_port}").geturl()
    client = Client(secure, queue, ssl={"cert_reqs": ssl.CERT_NONE})
    hub = client.on_a_loop()
    while len(client.got) < 100:
        hub.run_once()
    for number in range(1, 100):
        client.messages[number].ack()
    client.close()
    assert left(urls, queue) == [100]
