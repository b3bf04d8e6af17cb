"""Checks of a connection, on real sockets: unread data counts, and a silent broker is asked."""

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import spec
from amqp.exceptions import ConnectionForced

from celery_kit.brokers.rabbitmq.transport import ASKED, SILENCE, Channel, Connection


class Link:
    """A connection's end of a socket, the broker's end, and the methods that the broker was sent."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.asked: list[Any] = []
        self.beats = 0
        self.connection = Connection("127.0.0.1:1", heartbeat=10)
        self.connection.heartbeat = 10
        self.connection._transport = SimpleNamespace(sock=self.ours, close=self.ours.close)
        self.connection.frame_writer = self._beat
        channel = SimpleNamespace(is_open=True, send_method=lambda *sent: self.asked.append(sent), collect=lambda: None)
        channel.callbacks = {"consumer": print}
        self.connection.channels = {0: self.connection, 1: channel}
        self.look()

    def _beat(self, *_: object) -> None:
        self.beats += 1

    def look(self) -> None:
        self.connection.heartbeat_tick(10)

    def silent_for(self, seconds: float) -> None:
        """Nothing was received for so many seconds, and the question is that old too."""
        self.connection.last_heartbeat_received -= seconds
        if self.connection.asked is not None:
            self.connection.asked -= seconds


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    link.ours.close()
    link.theirs.close()


def test_a_silent_broker_is_asked_and_then_its_connection_closed(link: Link) -> None:
    link.silent_for(SILENCE + 1)
    link.look()
    assert link.asked == [(spec.Channel.Flow, "b", (True,))]
    link.look()
    assert len(link.asked) == 1
    link.silent_for(ASKED + 1)
    with pytest.raises(ConnectionForced):
        link.look()


def test_a_broker_is_not_asked_on_a_connection_that_only_sends(link: Link) -> None:
    """A worker's connection for events: TCP reports an unanswered write."""
    link.connection.channels[1].callbacks.clear()
    link.silent_for(SILENCE + 1)
    link.look()
    assert link.asked == []


def test_an_unread_answer_counts(link: Link) -> None:
    """The loop was blocked for longer than the broker may be silent; what arrived is still in the socket."""
    link.silent_for(SILENCE + 1)
    link.look()
    link.theirs.sendall(b"answer")
    link.silent_for(100)
    link.look()
    assert link.connection.asked is None


def test_an_unread_heartbeat_counts(link: Link) -> None:
    link.theirs.sendall(b"heartbeat")
    link.silent_for(100)
    link.look()
    assert link.asked == []


def test_a_broker_that_has_blocked_the_connection_is_not_asked(link: Link) -> None:
    """It neither reads nor answers then; it still sends heartbeats."""
    link.connection._on_blocked()
    link.silent_for(SILENCE + 1)
    link.look()
    assert link.asked == []
    link.connection._on_unblocked()
    link.look()
    assert len(link.asked) == 1


@pytest.mark.parametrize("which", ["connection", "channel"])
def test_a_broker_that_does_not_answer_is_not_asked_to_close(link: Link, which: str) -> None:
    """A close waits for its answer."""
    closing = {"connection": link.connection, "channel": Channel(link.connection, 2)}[which]
    link.silent_for(SILENCE + 1)
    link.look()
    link.silent_for(ASKED)
    closing.close()
    assert link.connection._transport is None


def test_heartbeats_are_not_sent_more_often(link: Link) -> None:
    """However often `heartbeat_tick` is called, one is sent in half an interval."""
    for _ in range(5):
        link.look()
    assert link.beats == 0
    link.connection.last_heartbeat_sent -= 6
    link.look()
    link.look()
    assert link.beats == 1
