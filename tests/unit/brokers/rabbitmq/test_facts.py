"""What is said of a cluster, from what its management interface says. A cut cluster is nothing that a test can have by itself:
a server here says what RabbitMQ's says then.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from kombu import Connection

from celery_kit.brokers.rabbitmq import facts
from tests.harness.ports import free_port

NODES = [{"name": f"rabbit@node-{number}", "running": True, "partitions": []} for number in (1, 2, 3)]


class Interface(HTTPServer):
    """Answers each question with `said`."""

    def __init__(self) -> None:
        self.said: Any = NODES
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Interface

    def do_GET(self) -> None:
        body = json.dumps(self.server.said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def interface() -> Iterator[Interface]:
    with Interface() as server:
        yield server
        server.shutdown()


def nodes(interface: Interface, **environ: str) -> Any:
    given = environ or {"RABBITMQ_MANAGEMENT_PORT": str(interface.server_port)}
    return facts._nodes(Connection("amqp://kit:kit@127.0.0.1/kit"), given)


def test_a_whole_cluster_has_a_note_and_no_fault(interface: Interface) -> None:
    assert nodes(interface) == (["3 of 3 nodes run: rabbit@node-1, rabbit@node-2, rabbit@node-3"], [])


def test_one_node_has_neither(interface: Interface) -> None:
    interface.said = NODES[:1]
    assert nodes(interface) == ([], [])


@pytest.mark.parametrize(("down", "then"), [(1, "one more, and its queues stop"), (2, "its queues have stopped")])
def test_nodes_that_are_down(interface: Interface, down: int, then: str) -> None:
    interface.said = [{**node, "running": number >= down} for number, node in enumerate(NODES)]
    _, [(what, to_do)] = nodes(interface)
    names = ", ".join(node["name"] for node in NODES[:down])  # type: ignore[misc]  # which are texts
    assert what == f"only {3 - down} of 3 nodes of the broker run ({names}): {then}"
    assert "make up" in to_do


def test_nodes_that_were_cut_from_each_other(interface: Interface) -> None:
    interface.said = [NODES[0], NODES[1], {**NODES[2], "partitions": ["rabbit@node-1"]}]
    _, [(what, to_do)] = nodes(interface)
    assert what == "rabbit@node-3 has been cut from rabbit@node-1: its data may be older" and "restart" in to_do


def test_the_first_port_that_answers_is_asked(interface: Interface) -> None:
    ports = f"{free_port()},{interface.server_port}"
    assert nodes(interface, RABBITMQ_MANAGEMENT_PORT=ports)[0]
    with pytest.raises(OSError, match="refused"):
        nodes(interface, RABBITMQ_MANAGEMENT_PORT=f"{free_port()},{free_port()}")


def test_queues_without_a_majority() -> None:
    copies = ["rabbit@node-1", "rabbit@node-2", "rabbit@node-3"]
    queues: list[dict[str, Any]] = [
        {"name": "whole", "members": copies, "online": copies},
        {"name": "enough", "members": copies, "online": copies[:2]},
        {"name": "classic"},
    ]
    assert facts._without_majority(queues) == []
    queues += [{"name": "stopped", "members": copies, "online": copies[:1]}]
    [(what, _)] = facts._without_majority(queues)
    assert what == "queues without a majority of their copies stand still: stopped"
