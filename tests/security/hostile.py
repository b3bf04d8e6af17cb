"""Hostile messages, by group: wrong types in every header, property and part of a body, deep and huge ones, bombs.

Each is what a client could send that has no Celery: the raw item of a Redis list, or the frames of an AMQP message.
"""

import base64
import bz2
import json
import lzma
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import amqp
from backports import zstd

from celery_kit.brokers.redis.delayed import DELAYED

EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
JSON = "application/json"
#: What a message of AMQP has in its own fields.
FIELDS = ("reply_to", "correlation_id", "priority", "delivery_mode")
_numbers = count()


@dataclass
class Hostile:
    """A message. `raw`: the whole item of a Redis list, in place of the rest. `table`: AMQP's header table, encoded; `encoded`:
    all of its properties. `settles`: it runs, or becomes a dead letter, and can be told from others.
    """

    what: str
    headers: Any = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""
    content_type: Any = JSON
    content_encoding: Any = "utf-8"
    raw: bytes | None = None
    table: bytes | None = None
    encoded: bytes | None = None
    settles: bool = True

    def item(self, queue: str) -> bytes:
        """The item of a Redis list."""
        if self.raw is not None:
            return self.raw
        number = next(_numbers)
        properties = {
            "correlation_id": self.headers.get("id") if isinstance(self.headers, dict) else None,
            "reply_to": "", "delivery_mode": 2, "priority": 0, "body_encoding": "base64", "delivery_tag": f"hostile-{number}",
            "delivery_info": {"exchange": "", "routing_key": queue},
        } | self.properties  # fmt: skip
        message = {
            "body": base64.b64encode(self.body).decode(), "content-encoding": self.content_encoding,
            "content-type": self.content_type, "headers": self.headers, "properties": properties,
        }  # fmt: skip
        return json.dumps(message).encode()


class Raw(amqp.Message):
    """A message whose properties are given as bytes."""

    encoded = b""

    def _serialize_properties(self) -> bytes:
        return self.encoded


def amqp_message(one: Hostile) -> amqp.Message:
    """A message of AMQP. Raises an error for one that it has no form for."""
    if one.table is not None:  # after content type and content encoding
        texts = b"".join(bytes([len(text)]) + text for text in (b"application/json", b"utf-8"))
        one.encoded = (0xE000).to_bytes(2, "big") + texts + len(one.table).to_bytes(4, "big") + one.table
    if one.encoded is not None:
        message = Raw(one.body)
        message.encoded = one.encoded
        return message
    fields = {name: value for name, value in one.properties.items() if name in FIELDS}
    if len(fields) < len(one.properties) or not isinstance(one.headers, dict):
        raise TypeError(one.what)
    return amqp.Message(
        one.body,
        content_type=one.content_type,
        content_encoding=one.content_encoding,
        application_headers=one.headers,
        **fields,
    )


def good(task: str, /, **changes: Any) -> dict[str, Any]:
    """The headers of a task's message, with some changed."""
    return {"lang": "py", "task": task, "id": f"hostile-{next(_numbers)}", "root_id": None, "parent_id": None} | changes


def body(args: Any = (1,), kwargs: Any = None, embed: Any = None) -> bytes:
    return json.dumps([args, {} if kwargs is None else kwargs, EMBED if embed is None else embed]).encode()


ODD: tuple[Any, ...] = (
    None, 5, -1, 1.5, True, "", "x", "\x00", "\u202e\x1b[2J", [], [1], [[[]]], ["x"], {}, {"a": 1}, {"task": 5}, [{"task": 5}],
    10**30, -(10**30), "x" * 100_000, [{}] * 3, {"__type__": "datetime", "__value__": 1}, "9999-99-99T99:99:99", "never",
)  # fmt: skip
HEADERS = (
    "id", "task", "lang", "root_id", "parent_id", "group", "group_index", "shadow", "eta", "expires", "retries", "timelimit",
    "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", "chain", "chord",
    "callbacks", "errbacks", "compression", "x-delivery-count", "reply_to", "correlation_id", "delivery_info", "hostname",
    "args", "kwargs", "utc", "taskset", "is_eager", "called_directly", "properties", "sent", "headers", "celery-kit-dead",
)  # fmt: skip


def wrong_headers(task: str) -> Iterator[Hostile]:
    for name in HEADERS:
        for value in ODD:
            yield Hostile(f"header {name} = {shown(value)}", good(task) | {name: value}, body=body())
    for value in ([["x"]], ["x", "y"], ["x"] * 10_000):
        yield Hostile(f"stamped_headers = {shown(value)}", good(task, stamped_headers=value, stamps={"x": 1}), body=body())
    for value in ([1, 2, 3], ["x", 1], [[], {}], [-1, -1], [1e308, 1e308], [None, "1"], [0, 0], [0.0001, 0.0001]):
        yield Hostile(f"timelimit = {value}", good(task, timelimit=value), body=body())
    for value in (None, 5, "x", [], [["id", "x"]]):
        yield Hostile(f"headers = {value}", value, body=body())


def wrong_properties(task: str) -> Iterator[Hostile]:
    for name in ("reply_to", "correlation_id", "priority", "delivery_info", "delivery_tag", "body_encoding", "delivery_mode"):
        for value in ODD:
            if name != "delivery_tag" or not isinstance(value, str):
                yield Hostile(f"property {name} = {shown(value)}", good(task), {name: value}, body())
    for value in (5, None, [], {}, "application/x-no", "application/x-python-serialize", "text/plain", "application/data"):
        yield Hostile(f"content_type = {value}", good(task), {}, body(), content_type=value)
    for value in (
        5,
        None,
        [],
        {},
        "no-such",
        "rot13",
        "zlib_codec",
        "base64_codec",
        "idna",
        "punycode",
        "unicode_escape",
        "utf-7",
    ):
        yield Hostile(f"content_encoding = {value}", good(task), {}, body(), content_encoding=value)
    yield Hostile("content_encoding bomb", good(task), {}, zlib.compress(bytes(100_000_000)), content_encoding="zlib_codec")


def wrong_bodies(task: str) -> Iterator[Hostile]:
    for name in ("callbacks", "errbacks", "chain", "chord"):
        for value in (
            *ODD,
            [None],
            [[None]],
            {"task": task, "args": 5},
            [{"task": task, "args": 5, "options": 5}],
            [{"task": "no"}],
        ):
            yield Hostile(f"{name} = {shown(value)}", good(task), {}, body(embed=EMBED | {name: value}))
    for value in ODD:
        yield Hostile(f"args = {shown(value)}", good(task), {}, body(args=value))
        yield Hostile(f"kwargs = {shown(value)}", good(task), {}, body(kwargs=value))
        yield Hostile(f"embed = {shown(value)}", good(task), {}, json.dumps([[1], {}, value]).encode())
        yield Hostile(f"body = {shown(value)}", good(task), {}, json.dumps(value).encode())
    for text in (
        "NaN",
        "[[NaN], {}, {}]",
        "[[Infinity], {}, {}]",
        f"[[{'1' * 10_000}], {{}}, {{}}]",
        "\ufeff[]",
        '[["\\ud800"], {}, {}]',
    ):
        yield Hostile(f"body = {text[:30]}", good(task), {}, text.encode("utf-8", "surrogatepass"))
    yield Hostile("kwargs that are no names", good(task), {}, body(kwargs={"": 1, "a b": 2, "self": 3, "__class__": 4}))


def deep(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


def deep_dict(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


DEPTHS = (150, 900, 2_000, 5_000, 9_000, 11_000, 100_000, 1_000_000)


def deep_ones(task: str) -> Iterator[Hostile]:
    for depth in DEPTHS:
        for text in (deep(depth), deep_dict(depth)):
            yield Hostile(f"args of depth {depth}", good(task), {}, f"[[{text}], {{}}, {{}}]".encode())
            yield Hostile(f"kwargs of depth {depth}", good(task), {}, f'[[], {{"a": {text}}}, {{}}]'.encode())
            yield Hostile(f"embed of depth {depth}", good(task), {}, f'[[1], {{}}, {{"chain": {text}}}]'.encode())
            yield Hostile(f"body of depth {depth}", good(task), {}, text.encode())
    for depth in DEPTHS[:-1]:
        yield Hostile(f"table of depth {depth}", good(task), {}, body(), table=deep_table(task, depth))
        for name in ("id", "extra", "stamps"):
            for text in (deep(depth), deep_dict(depth)):
                yield Hostile(f"header {name} of depth {depth}", good(task), raw=raw(task, name, text))


def raw(task: str, name: str, text: str) -> bytes:
    """An item of a Redis list, one of whose headers is JSON that no encoder would write."""
    item = Hostile("", good(task) | {name: "PLACE"}, body=body()).item("celery").decode()
    return item.replace('"PLACE"', text).encode()


def deep_table(task: str, depth: int) -> bytes:
    """An AMQP table with the headers of a task, and one that is nested so often. A frame holds 128 KB."""
    depth = min(depth, 15_000)
    inner = b""
    for _ in range(depth):
        inner = b"\x01a" + b"F" + struct.pack(">I", len(inner)) + inner
    texts = {"lang": "py", "task": task, "id": f"hostile-{next(_numbers)}"}
    table = b"".join(bytes([len(k)]) + k.encode() + b"S" + struct.pack(">I", len(v)) + v.encode() for k, v in texts.items())
    return table + b"\x04deepF" + struct.pack(">I", len(inner)) + inner


def bombs(task: str) -> Iterator[Hostile]:
    """Small messages that become large ones."""
    gigabyte = 1_000_000_000
    pack = zlib.compressobj(9)
    small = b"".join([pack.compress(bytes(10_000_000)) for _ in range(gigabyte // 10_000_000)]) + pack.flush()
    zeros = bytes(500_000_000)
    packed = {"zlib": small, "bzip2": bz2.compress(zeros), "lzma": lzma.compress(zeros), "zstd": zstd.compress(zeros)}
    for name, content in packed.items():
        yield Hostile(f"{name} bomb", good(task, compression=name), {}, content)
        yield Hostile(f"{name}, cut off", good(task, compression=name), {}, content[: len(content) // 2])
        yield Hostile(f"{name}, no such", good(task, compression=name), {}, b"no such data")
    twice = zlib.compress(small)
    yield Hostile("zlib twice", good(task, compression="application/x-gzip"), {}, twice)
    yield Hostile("64 MB", good(task), {}, body(["x" * 64_000_000]))
    for text in ("[]," * 4_000_000, "{}," * 4_000_000, '"ab",' * 3_000_000, "1000," * 3_000_000):
        yield Hostile(f"15 MB of {text[:5]}", good(task), {}, f"[[[{text}0]], {{}}, {{}}]".encode())


def no_messages(task: str) -> Iterator[Hostile]:
    """Items that are no messages, for Redis, and some whose tag or address cannot be sent to it again."""
    for name, place in (("delivery_tag", "PLACE"), ("delivery_info", {"exchange": "", "routing_key": "PLACE"})):
        for odd in (b"a\xffb", b"\\ud800", b"\\u0000", b"a\\fb", b'a\\"b', b""):
            made = Hostile("", good(task), {name: place}, body()).item("hostile").replace(b"PLACE", odd)
            yield Hostile(f"item with {name} = {odd!r}", raw=made)
            yield Hostile(f"item with {name} = {odd!r}, no body", raw=made.replace(b'"body": "', b'"body": "A'))
    priority = Hostile("", good(task), {"priority": "PLACE"}, body()).item("hostile").replace(b'"PLACE"', b"1e999")
    yield Hostile("item with priority = 1e999", raw=priority)
    for item in (
        b"", b"x", b"\x00", b"\xff\xfe", b"{}", b"[]", b"null", b"5", b'"x"', b"NaN", b'{"body": 5}', b'{"properties": {}}',
        b'{"headers": {}, "body": "", "properties": {"delivery_tag": 5, "delivery_info": 5}}',
        b'{"headers": 5, "body": [], "properties": {"delivery_tag": "", "delivery_info": {}}}',
        b'{"__type__": "datetime", "__value__": 1}', b'{"__type__": "no such", "__value__": 1}',
        b'{"__type__": [], "__value__": 1}', deep(1_000_000).encode(), deep_dict(1_000_000).encode(), b"x" * 20_000_000,
        b"1" * 10_000, b'{"a": ' + b"1" * 10_000 + b"}", b"%" * 1_000, b"[" * 500, DELAYED.encode() + b"\n{}",
    ):  # fmt: skip
        yield Hostile(f"item {item[:40]!r}", raw=item)
    kind, address = '"content-type": "application/json"', '"delivery_info": {"exchange": "", "routing_key": "q"}'
    for value in ("5", "[]", '{"__type__": "datetime", "__value__": 1}', "null", '"x"', "1e999", "-1", deep(5_000)):
        for name in ("delivery_tag", "delivery_info", "body_encoding", "priority", "correlation_id"):
            about = f'"delivery_tag": "t-{next(_numbers)}", {address}, "{name}": {value}'
            text = f'{{"body": "e30=", "headers": {{}}, {kind}, "properties": {{{about}}}}}'
            yield Hostile(f"item with {name} = {value[:30]}", raw=text.encode())


#: How many random messages are sent, and what makes them the same again.
MUTATIONS, SEED = int(os.environ.get("MUTATIONS") or 500), int(os.environ.get("SEED") or 1)
LEAVES = (
    None,
    True,
    0,
    1,
    -1,
    2**31,
    2**63,
    1e308,
    "",
    "a",
    "\x00",
    "\ud800",
    "é",
    "None",
    "2026-01-01",
    "1e9",
    "celery",
    "x" * 300,
)


def anything(random: Random, depth: int = 0) -> Any:
    """A random value of JSON."""
    kind = random.random()
    if depth > 5 or kind < 0.6:
        return random.choice(LEAVES)
    several = [anything(random, depth + 1) for _ in range(random.randrange(4))]
    if kind < 0.8:
        return several
    return {str(random.choice((*EMBED, "task", "args", "kwargs", "id", "__type__", "__value__"))): one for one in several}


def mutations(task: str) -> Iterator[Hostile]:
    """Messages of a task, each with some random changes: of a value anywhere, or of some bytes of its text."""
    random = Random(SEED)
    for number in range(MUTATIONS):
        headers = good(task, retries=0, timelimit=[None, None], argsrepr="(1,)", kwargsrepr="{}", ignore_result=False, sent=1.5)
        properties: dict[str, Any] = {}
        content: list[Any] = [[1], {}, dict(EMBED)]
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(4)
            if place == 0:
                headers[random.choice(HEADERS)] = anything(random)
            elif place == 1:
                content[2][random.choice(list(EMBED))] = anything(random)
            elif place == 2:
                content[random.randrange(3)] = anything(random) if random.random() < 0.3 else content[0]
                content[2] = content[2] if isinstance(content[2], dict) else dict(EMBED)
            else:
                properties[random.choice(("reply_to", "correlation_id", "priority", "delivery_mode"))] = anything(random)
        one = Hostile(f"mutation {number} of seed {SEED}", headers, properties, json.dumps(content).encode())
        if random.random() < 0.3:
            one.body = flipped(random, one.body)
        if random.random() < 0.2:
            one.content_type, one.content_encoding = anything(random), random.choice(LEAVES)
        yield one
        if random.random() < 0.2:
            yield Hostile(f"{one.what}, flipped", raw=flipped(random, one.item("celery")))


def flipped(random: Random, text: bytes) -> bytes:
    """A text with some bytes changed, left out or repeated."""
    changed = bytearray(text)
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(changed) or 1)
        end = at + random.randrange(1, 8)
        changed[at:end] = random.choice(
            (b"", bytes(changed[at:end]) * 2, random.randbytes(3), b'"', b"[", b"{", b"null", b"9" * 400)
        )
    return bytes(changed)


def shown(value: Any) -> str:
    return ascii(value)[:40]


GROUPS = {
    "headers": wrong_headers,
    "properties": wrong_properties,
    "bodies": wrong_bodies,
    "deep": deep_ones,
    "bombs": bombs,
    "items": no_messages,
    "mutations": mutations,
}
