"""A mailbox that is locked (fix locked_mailbox): who had it waits, and who did not is told what to do."""

import logging
from types import SimpleNamespace

import pytest
from amqp.exceptions import NotFound, ResourceLocked

from celery_kit.fixes.mailbox import _ours


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
