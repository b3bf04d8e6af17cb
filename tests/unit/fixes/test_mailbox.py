"""A mailbox that is locked (fix locked_mailbox): who had it waits, and who did not is told what to do."""

import logging
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from amqp.exceptions import NotFound, ResourceLocked
from celery.worker.consumer.gossip import Gossip
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_kit.base.types import Message
from celery_kit.fixes.mailbox import GreenPidbox, Pidbox, _ours, unread_events


def test_who_had_it_waits() -> None:
    assert _ours(SimpleNamespace(had=True, waits=None), ResourceLocked())


def test_a_name_that_another_worker_has_is_refused_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    box = SimpleNamespace(had=False, told=False, waits=None, hostname="celery@here")
    with caplog.at_level(logging.ERROR):
        assert not any(_ours(box, ResourceLocked()) for _ in range(3))
    (line,) = caplog.messages
    assert "celery@here" in line and "--hostname NAME@%h" in line


def test_another_error_is_not_its_own() -> None:
    assert not _ours(SimpleNamespace(had=True, waits=None), NotFound())


@pytest.mark.parametrize("kind", [Pidbox, GreenPidbox])
@pytest.mark.parametrize("body", ["text", 5, None, ["revoke"]])
def test_what_is_no_command_leaves_the_mailbox_open(
    kind: type[Pidbox], body: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery's handler fails, and opens it anew."""
    anew: list[object] = []
    box = object.__new__(kind)
    monkeypatch.setattr(box, "_forward_clock", lambda: None, raising=False)
    monkeypatch.setattr(box, "reset", lambda: anew.append(body), raising=False)
    monkeypatch.setattr(box, "node", SimpleNamespace(handle_message=lambda given, _: given.get("method")), raising=False)
    box.on_message(body, cast("Message", None))
    assert not anew and f"{type(body).__name__} is no command" in caplog.text


@pytest.mark.parametrize("error", [KeyError("hostname"), ContentDisallowed("json"), DecodeError("unsigned"), TypeError("list")])
def test_an_event_that_cannot_be_read_is_ignored(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery reads the sender's name from it, and the error ends the connection."""

    class Unreadable:
        delivery_info: ClassVar = {"routing_key": "worker.heartbeat"}
        headers: ClassVar[dict[str, object]] = {}

        @property
        def payload(self) -> object:
            raise error

    monkeypatch.setattr(Gossip, "on_message", Gossip.on_message)
    box: Any = object.__new__(Gossip)
    box.event_handlers, box.hostname = {}, "me"
    if not Gossip.on_message.__module__.startswith("celery_kit"):
        with pytest.raises(type(error)):
            box.on_message(None, Unreadable())
    unread_events()
    box.on_message(None, Unreadable())
    (line,) = caplog.messages
    assert line.startswith("an event is ignored: ")
