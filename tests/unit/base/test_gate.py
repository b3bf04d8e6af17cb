"""The gate: what a message may be. celery_kit/base/gate.py, celery_kit/base/sizes.py"""

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from celery_kit.base import sizes
from celery_kit.base.gate import refusal, refuse_payload, wrong_callback
from celery_kit.base.messages import DELIVERIES
from celery_kit.base.sizes import DEPTH, is_for_texts, too_large

HEADERS = {"lang": "py", "task": "mail.send", "id": "1f3c", "root_id": None, "retries": 0, "timelimit": [None, 30], "sent": 1.5}
BODY = b'[["a@b.c"], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


def message(headers: Any = None, body: Any = BODY, encoding: Any = "utf-8", payload: Any = None, **properties: Any) -> Any:
    return SimpleNamespace(
        headers=headers or HEADERS, body=body, content_encoding=encoding, payload=payload, properties=properties
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"eta": "2026-01-01T00:00:00+00:00", "expires": None, "group": "g", "group_index": 3, "ignore_result": False},
        {"retries": "2"},
        {"stamped_headers": ["tenant"], "stamps": {"tenant": "a"}, "shadow": "ein Name mit Umlauten: äöü"},
        {
            "timelimit": [10.5, 5],
            DELIVERIES: 3,
            "custom": [[1], {"a": None}],
            "chain": [{"task": "next", "args": [1], "options": {}}],
        },
    ],
)
def test_what_celery_sends_is_let_in(headers: dict[str, Any]) -> None:
    assert refusal(message(HEADERS | headers)) is None


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"id": 5}, "its header 'id' is not a text"),
        ({"id": [["x"]]}, "its header 'id' is not a text"),
        ({"id": None}, "it has no id"),
        ({"id": "x" * 256}, "its header id is longer than 255 characters, or not printable"),
        ({"id": "a\nb"}, "its header id is longer than 255 characters, or not printable"),
        ({"id": "\ud800"}, "its header id is longer than 255 characters, or not printable"),
        ({"task": "t" * 100_000}, "its header task is longer than 255 characters, or not printable"),
        ({"stamped_headers": 1}, "its header 'stamped_headers' is not a list"),
        ({"stamped_headers": [1]}, "its header stamped_headers is no list of names"),
        ({"retries": True}, "its header 'retries' is not a text or a whole number"),
        ({"retries": "x"}, "its header retries is no number from 0 to 2,147,483,648"),
        ({"retries": -1}, "its header retries is no number from 0 to 2,147,483,648"),
        ({"timelimit": ["x", 1]}, "its time limits are not two numbers"),
        ({"timelimit": [True, 1]}, "its time limits are not two numbers"),
        ({"timelimit": [1]}, "its time limits are not two numbers"),
        ({"timelimit": [float("nan"), 1]}, "its time limits are not two numbers"),
        ({"chain": [5]}, "its header chain holds something else than signatures"),
        ({"errbacks": 5}, "its header 'errbacks' is not a list"),
        ({"shadow": [1]}, "its header 'shadow' is not a text"),
        ({"eta": 5}, "its header 'eta' is not a text or datetime"),
    ],
)
def test_a_header_of_the_wrong_kind_is_not(headers: dict[str, Any], why: str) -> None:
    assert refusal(message(HEADERS | headers)) == why


@pytest.mark.parametrize("value", [5, ["x"], {"a": 1}, "x" * 256, "a\nb", "\ud800"])
@pytest.mark.parametrize("name", ["reply_to", "correlation_id"])
def test_a_property_of_the_wrong_kind_is_not(name: str, value: object) -> None:
    why = "longer than 255 characters, or not printable" if isinstance(value, str) else "is not a text"
    assert str(refusal(message(**{name: value}))).endswith(why)
    assert refusal(message(**{name: "1f3c"})) is None


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "binary", "ascii", "us-ascii", "latin-1", None])
def test_encodings_of_texts_are_let_in(encoding: str | None) -> None:
    assert is_for_texts(encoding) and refusal(message(encoding=encoding)) is None


@pytest.mark.parametrize(
    "encoding", ["zlib_codec", "bz2", "idna", "punycode", "unicode_escape", "no-such", "\0", "x" * 1_000, 5]
)
def test_other_encodings_are_not(encoding: object) -> None:
    assert not is_for_texts(encoding)
    assert str(refusal(message(encoding=encoding))).startswith("its content encoding is ")


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


FLAT = "[" + ",".join(["[]"] * 1_000) + "]"
TEXTS = (json.dumps("[" * 1_000), '{"a": "\\"[' + "[" * 999 + '"}')


@pytest.mark.parametrize("text", [nested(DEPTH), FLAT, *TEXTS])
def test_what_is_flat_or_a_text_is_not_deep(text: str) -> None:
    assert too_large(text) is None and too_large(text.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        nested(DEPTH + 1),
        nested(DEPTH + 1, '{"a":', "}"),
        nested(DEPTH + 1, '["\\\\", [], ', "]"),
        nested(DEPTH + 1, '[[], {"[": "\\""}, ', ", []]"),
        nested(1_000_000),
    ],
)
def test_what_is_deep_is_found(text: str) -> None:
    why = f"it is nested deeper than {DEPTH} levels"
    assert (too_large(text), too_large(text.encode())) == (why, why)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of 64 KiB, and so of 4,096 elements."""
    monkeypatch.setattr(sizes, "most", lambda: 65_536)


@pytest.mark.parametrize("element", ["[]", "{}", "1", '"ab"', '""', '{"a": 1}', '"\\""'])
def test_many_elements_are_counted(small: None, element: str) -> None:
    few, many = (json.loads(json.dumps(f"[{','.join([element] * number)}]")) for number in (4_000, 5_000))
    assert too_large(few) is None
    assert too_large(many) == "it has more than 4,096 elements (a sixteenth of MESSAGE_MOST)"


@pytest.mark.parametrize("value", [[",[{" * 10_000], ['\\",' * 5_000], {"a,b": "," * 50_000}], ids=("open", "escaped", "key"))
def test_what_looks_like_elements_in_a_text_is_none(small: None, value: object) -> None:
    assert too_large(json.dumps(value)) is None


def test_the_size_is_bounded(small: None) -> None:
    assert too_large("x" * 65_536) is None
    assert too_large("x" * 65_537) == "it is larger than 65,536 bytes (MESSAGE_MOST)"
    assert too_large("x" * 65_537, times=2) is None
    assert refusal(message(body=bytearray(65_537))) == "it is larger than 65,536 bytes (MESSAGE_MOST)"
    assert refusal(message(body=["a list"])) == "its body is neither text nor bytes"


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ([5, {}, {}], "its body is no arguments, keyword arguments and callbacks"),
        ([[], [], {}], "its body is no arguments, keyword arguments and callbacks"),
        ([[], {}, {"callbacks": [5]}], "its callbacks holds something else than signatures"),
        ([[], {}, {"chord": {"task": "t", "args": 5}}], "its chord holds something else than signatures"),
        ({"task": "t", "id": 5}, "its 'id' is not a text"),
        ({"task": "t", "id": None}, "it has no id"),
        ({"task": "t", "id": "1", "args": {}, "kwargs": []}, None),
        ({"task": "t", "id": "1", "args": "a"}, "its body is no arguments and keyword arguments"),
    ],
)
def test_the_shape_of_a_body_is_checked(payload: Any, why: str | None) -> None:
    with pytest.raises(TypeError, match=why) if why else nullcontext():
        refuse_payload(message(payload=payload))


def test_what_celery_writes_are_signatures() -> None:
    from celery import Celery, chain, chord, group

    app = Celery("signatures", set_as_current=False)

    @app.task(name="one")
    def one() -> None: ...

    sent = chain(one.si(), group(one.s(1), one.s(a=2)), chord([one.s()], one.s()))
    signature = json.loads(json.dumps(sent))
    assert wrong_callback({"chord": signature, "chain": [signature], "callbacks": (signature,), "errbacks": []}) is None
    wrongs: tuple[Any, ...] = (5, "x", [None], [[]], {"task": 5}, {"task": "t", "options": [1]}, {"task": "t"})
    for wrong in wrongs:
        assert wrong_callback({"chord": wrong}) and wrong_callback({"chain": wrong}) and wrong_callback({"errbacks": [wrong]})
    assert wrong_callback({"chain": signature}) and wrong_callback(
        {"chord": [signature]}
    )  # Celery reads a list, and one signature
