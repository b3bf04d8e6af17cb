"""JSON that is written and read with less work says what kombu's own says."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from kombu.utils import json as kombus

from celery_kit.engine.quick_json import parse, text_of

VALUES = [
    None, True, False, 0, -7, 2**70, 1.5, float("inf"), "", "plain", 'quote " and \\', "ü€𝄞\n\x00\x7f", [], {}, [1, "a", None],
    {"a": {"b": [1.0]}}, (1, 2), datetime(2026, 1, 2, tzinfo=UTC), Decimal("1.5"), UUID(int=7), b"bytes",
]  # fmt: skip


class Own(int):
    """A kind of int that says something else of itself."""

    def __repr__(self) -> str:
        return "own"


@pytest.mark.parametrize("value", [*VALUES, Own(3)], ids=repr)
def test_a_value_is_written_and_read_as_by_kombu(value: Any) -> None:
    text = text_of(value)
    assert text == kombus.dumps(value)
    assert parse(text) == kombus.loads(text)


@pytest.mark.parametrize("text", [" [1]", "[1] ", "\n1\n"])
def test_white_space_around_a_text_is_nothing(text: str) -> None:
    assert parse(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", " ", "[1", "[1] 2", "nothing", '{"__type__": '])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)
