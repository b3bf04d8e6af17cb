"""A mailbox that is locked (fix locked_mailbox): who had it waits, and who did not is told what to do."""

import logging
from types import SimpleNamespace
from typing import cast

import pytest
from amqp.exceptions import NotFound, ResourceLocked

from celery_kit.base.types import Message
from celery_kit.fixes.mailbox import GreenPidbox, Pidbox, _ours


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
