"""Which dead letters `make dead` means."""

from datetime import UTC, datetime
from typing import Any

import pytest

from celery_kit.brokers.contract import REPLAYED, DeadLetter, letter_from
from celery_kit.operate.look import dead
from celery_kit.operate.look.dead import Filter, since

LETTER = DeadLetter("1", "mail.send", "q", "ValueError: No such mail", "2026-11-30T12:00:00+00:00", 1, "failed")


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ({}, True),
        ({"id": "1"}, True),
        ({"id": "2"}, False),
        ({"task": "mail.send"}, True),
        ({"task": "mail.*"}, True),
        ({"task": "mail"}, False),
        ({"kind": "failed"}, True),
        ({"kind": "poison"}, False),
        ({"reason": "no such"}, True),
        ({"reason": "KeyError"}, False),
        ({"since": "2026-11-30T12:00:00+00:00"}, True),
        ({"since": "2026-11-30T12:00:01+00:00"}, False),
        ({"task": "mail.*", "kind": "poison"}, False),
    ],
)
def test_a_filter_means_a_letter_that_meets_all_of_it(given: dict[str, str], means: bool) -> None:
    assert Filter(**given).matches(LETTER) == means


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ("90s", "2026-11-30T11:58:30+00:00"),
        ("12h", "2026-11-30T00:00:00+00:00"),
        ("7d", "2026-11-23T12:00:00+00:00"),
        ("2026-11-30", "2026-11-30T00:00:00+00:00"),
        ("2026-11-30T12:00+01:00", "2026-11-30T11:00:00+00:00"),
    ],
)
def test_since_is_a_time_ago_or_a_time(given: str, at: str) -> None:
    assert since(given, datetime(2026, 11, 30, 12, tzinfo=UTC)) == at


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--since=yesterday"], "SINCE=yesterday is not known; allowed: a time ago such as 90s, 30m, 12h or 7d, or"),
        (["--since=999999999d"], "SINCE=999999999d is not known"),
        (["--kind=dead"], "KIND=dead is not known; allowed: failed, poison, malformed, unknown, rejected, unsigned"),
        (["--retry=1", "--drop=1"], "RETRY and DROP contradict each other; give one of them"),
        (["--retry=1", "--id=2"], "ID and RETRY contradict each other; give one of them"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    argv: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dead", *argv])
    with pytest.raises(SystemExit) as ended:
        dead.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"celery-kit: {said}")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("delivered 20 times, and no worker lived to end it", "poison"),
        ("delivered too often (the broker's count)", "poison"),
        ("rejected by its task, without requeue", "rejected"),
        ("no such task: 'x'", "unknown"),
        ("signature refused: it is not signed", "unsigned"),
        (REPLAYED, "unsigned"),
        ("cannot be decoded: x", "malformed"),
        ("is no task", "malformed"),
    ],
)
def test_a_record_without_a_kind_gets_it_by_its_reason(reason: str, kind: str) -> None:
    record: dict[str, Any] = {"id": "1", "task": "t", "queue": "q", "reason": reason, "when": "2026", "deliveries": 1}
    assert letter_from({**record, "of_a_later_version": 1}).kind == kind


RECORD: dict[str, Any] = {"id": "1", "task": "t", "queue": "q", "reason": "r", "when": "2026", "deliveries": 1}


@pytest.mark.parametrize("name", [*RECORD, "attempts", "worker", "traceback", "kind"])
@pytest.mark.parametrize("value", [None, [], {"a": 1}, b"x", 1.5, True])
def test_a_record_with_other_types_is_none(name: str, value: object) -> None:
    """Anybody can write one. What is no JSON would end the listing, and hide all others."""
    with pytest.raises(TypeError):
        letter_from(RECORD | {name: value})


def test_a_line_controls_no_terminal() -> None:
    hostile = "\x1b[2J\u202e\ud800\r\nceleryä"
    names = ("id", "task", "queue", "reason", "when", "kind", "worker")
    line = dead._line(letter_from(RECORD | dict.fromkeys(names, hostile)))
    assert line.isprintable() and "celeryä" in line and "\\x1b[2J" in line
