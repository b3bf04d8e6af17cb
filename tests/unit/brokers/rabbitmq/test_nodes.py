"""Several URLs: a process goes to a node that has not failed. Sockets play the nodes."""

import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from amqp.exceptions import ConnectionForced
from kombu.exceptions import OperationalError

from celery_kit.brokers.rabbitmq import cluster, transport
from celery_kit.produce.publishing import Connection
from tests.unit.brokers.rabbitmq.test_dead_connection import Link
from tests.unit.brokers.rabbitmq.test_silence import Broker

SOON = 0.2  # seconds


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No test knows what has failed in another."""
    transport._failed.clear()
    yield
    transport._failed.clear()


@pytest.fixture
def frozen() -> Iterator[socket.socket]:
    """A node that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as node:
        yield node


def address(node: Any) -> str:
    return node.address if isinstance(node, Broker) else f"127.0.0.1:{node.getsockname()[1]}"


def connection(*nodes: Any, engine: str = "fast") -> Any:
    urls = ";".join(f"amqp://kit:kit@{address(node)}/kit" for node in nodes)
    return Connection(urls, connect_timeout=SOON, transport_options={"engine": engine})


def connect(several: Any) -> str:
    """The address of the node that a connection with one try for each URL is made to."""
    several.ensure_connection(max_retries=len(several.alt) - 1, interval_start=0)
    reached = f"{several.hostname}:{several.port}"
    several.collect()
    return reached


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_a_node_that_has_failed_is_avoided_by_the_next_connection(frozen: socket.socket, engine: str) -> None:
    first, second = Broker(), Broker()
    assert connect(connection(frozen, first, engine=engine)) == first.address
    frozen.setblocking(False)
    frozen.accept()
    assert connect(connection(frozen, second, engine=engine)) == second.address
    with pytest.raises(BlockingIOError):
        frozen.accept()


def test_the_order_of_the_urls_is_kept_until_one_fails() -> None:
    first, second = Broker(), Broker()
    assert connect(connection(first, second)) == first.address


def test_of_nodes_that_have_all_failed_the_one_that_did_so_first_is_tried_first(frozen: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as another:
        with pytest.raises(OperationalError):
            connect(connection(frozen, another))
        with pytest.raises(OperationalError):
            connection(another, frozen).ensure_connection(max_retries=0)
        assert min(transport._failed, key=lambda one: transport._failed[one]) == address(another)


def test_one_broker_is_tried_again_whatever_has_failed(frozen: socket.socket) -> None:
    for _ in range(2):
        with pytest.raises(OperationalError):
            connect(connection(frozen))
    frozen.accept()
    frozen.setblocking(False)
    frozen.accept()


def test_a_silent_node_of_several_is_given_up_sooner_and_avoided() -> None:
    link = Link()
    link.connection.address, link.connection.silence = "broker-1:5672", transport.SOONER
    silence, asked = transport.SOONER
    link.silent_for(silence + 0.5)
    link.look()
    link.silent_for(asked + 0.5)
    with pytest.raises(ConnectionForced):
        link.look()
    assert list(transport._failed) == ["broker-1:5672"]


def test_a_connection_to_one_of_several_is_of_the_sooner_kind() -> None:
    first, second, alone = Broker(), Broker(), Broker()
    kinds = []
    for several in (connection(first, second), connection(alone)):
        several.connect()
        kinds.append(several.connection.silence)
        several.collect()
    assert kinds == [transport.SOONER, (transport.SILENCE, transport.ASKED)]


def test_a_node_that_has_failed_is_asked_to_close_no_other_connection() -> None:
    """A worker has several: each would wait for the answer."""
    first, second = Broker(), Broker()
    several = connection(first, second)
    several.connect()
    lost = several.connection
    lost.failed()
    lost.close()
    assert not lost.connected
    lost.collect()


def test_hosts_begin_with_different_nodes_and_know_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first = set()
    for number in range(30):
        monkeypatch.setattr(cluster, "gethostname", lambda number=number: f"worker-{number}")
        hosts = re.findall(r"@(broker-\d):5672/kit", cluster.url({"BROKER_PASSWORD": "x"}))
        assert sorted(hosts) == sorted(cluster.HOSTS)
        first.add(hosts[0])
    assert first == set(cluster.HOSTS)
