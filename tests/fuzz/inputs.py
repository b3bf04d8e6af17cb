"""The inputs of the fuzzer: seeds made of the fixed hostile messages and of usual ones, and how one is changed.

An input is what arrives at a worker: on Redis the item of a list, on RabbitMQ a message's encoded properties and its body.
"""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import amqp
from kombu.compression import compress

from tests.security.hostile import GROUPS, Hostile, amqp_message, anything, body, good

QUEUE, TASK = "hostile", "security.touch"
#: The most bytes of an input.
LONGEST = 32_768


def parts(data: bytes) -> tuple[bytes, bytes]:
    """The properties and the body of a message for `Rabbitmq`: two bytes say how long the properties are."""
    end = 2 + int.from_bytes(data[:2], "big")
    return data[2:end], data[end:]


def whole(properties: bytes, body: bytes) -> bytes:
    """The reverse of `parts`."""
    return len(properties).to_bytes(2, "big") + properties + body


def of_redis(one: Hostile) -> bytes:
    """A hostile message as the item of a Redis list."""
    if one.table is not None:
        raise TypeError(one.what)
    return one.item(QUEUE)


def of_rabbitmq(one: Hostile) -> bytes:
    """A hostile message as AMQP's properties and body. Raises an error for one that AMQP has no form for."""
    if one.raw is not None:
        raise TypeError(one.what)
    made = amqp_message(one)
    return whole(made._serialize_properties(), one.body)  # type: ignore[attr-defined]


SEEDS: dict[str, Callable[[Hostile], bytes]] = {"redis": of_redis, "rabbitmq": of_rabbitmq}


def write_seeds(broker: str, folder: Path) -> int:
    """Write the fixed inputs that are short enough, and what Celery sends for many features. Returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    found = set()
    for one in (message for group in GROUPS if group != "bombs" for message in GROUPS[group](TASK)):
        try:
            found.add(SEEDS[broker](one))
        except Exception:  # this broker has no form for it
            continue
    found |= {SEEDS[broker](one) for one in usual()}
    sys.setrecursionlimit(limit)
    short = sorted(one for one in found if len(one) <= LONGEST)
    for number, data in enumerate(short):
        (folder / f"seed-{number:05}").write_bytes(data)
    return len(short)


def usual() -> Iterator[Hostile]:
    """What Celery's client sends, with features that make a worker do more."""
    headers = good(TASK, retries=0, timelimit=[None, None], argsrepr="(1,)", kwargsrepr="{}", ignore_result=False, sent=1.5)
    signature: dict[str, Any] = {
        "task": TASK,
        "args": [1],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
        "immutable": False,
    }
    chord = {"task": "celery.chord", "args": [], "kwargs": {"header": [signature], "body": signature}, "options": {}}
    plain = {"callbacks": [signature], "errbacks": [signature], "chain": [signature, signature], "chord": chord}
    yield Hostile("whole", headers, {"reply_to": "r", "correlation_id": "c"}, body(embed=plain))
    yield Hostile("stamped", headers | {"stamped_headers": ["a"], "stamps": {"a": [1]}}, {}, body())
    yield Hostile("eta", headers | {"eta": "2099-01-01T00:00:00+00:00", "expires": "2099-01-01T00:00:00.5Z"}, {}, body())
    yield Hostile("eta", headers | {"eta": "2099-01-01T00:00:00", "timelimit": [10, 5.5]}, {}, body())
    one = {"task": TASK, "id": "p1", "args": [1], "kwargs": {}, "retries": 0, "eta": None, "expires": None, "utc": True}
    yield Hostile("protocol 1", {}, {}, json.dumps(one | plain | {"taskset": None}).encode())
    for name in ("zlib", "bzip2", "lzma", "zstd", "brotli"):
        yield Hostile(name, headers | {"compression": name}, {}, compress(body(), name)[0])


# Mutations


def of_value(random: Random, value: Any, by_bytes: Callable[[bytes, int], bytes], depth: int = 0) -> Any:
    """A value of JSON with one part changed: replaced, left out, doubled, or its text changed by libFuzzer."""
    if isinstance(value, dict) and value and (depth == 0 or random.random() < 0.7):
        name = random.choice(list(value))
        changed = dict(value)
        if random.random() < 0.05:
            changed[str(random.choice((*value, "eta", "chain", "__type__", "stamps")))] = changed.pop(name)
        else:
            changed[name] = of_value(random, value[name], by_bytes, depth + 1)
        return changed
    if isinstance(value, list) and value and random.random() < 0.7:
        at, changed_list = random.randrange(len(value)), list(value)
        changed_list[at : at + 1] = random.choice(([], [value[at]] * 2, [of_value(random, value[at], by_bytes, depth + 1)]))
        return changed_list
    if random.random() < 0.4:
        return anything(random)
    text = value if isinstance(value, str) else json.dumps(value)
    changed_text = by_bytes(text.encode("utf-8", "surrogatepass"), len(text) + 64).decode("utf-8", "replace")
    if isinstance(value, str):
        return changed_text
    try:
        return json.loads(changed_text)
    except (ValueError, RecursionError):
        return changed_text


def of_body(random: Random, content: bytes, by_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """A body with a change: of the value that it is, or of its bytes."""
    try:
        if random.random() < 0.7:
            return json.dumps(of_value(random, json.loads(content), by_bytes)).encode()
    except (ValueError, RecursionError):
        pass
    return by_bytes(content, len(content) + 256)


def mutate_redis(data: bytes, random: Random, by_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """An item of a list, changed."""
    try:
        item = json.loads(data)
        if random.random() < 0.5:
            content = of_body(random, base64.b64decode(item["body"]), by_bytes)
            return json.dumps(item | {"body": base64.b64encode(content).decode()}).encode()
        if random.random() < 0.8:
            return json.dumps(of_value(random, item, by_bytes)).encode()
    except Exception:
        pass
    return by_bytes(data, LONGEST)


def mutate_rabbitmq(data: bytes, random: Random, by_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """Properties and body, one of them changed."""
    properties, content = parts(data)
    kind = random.random()
    if kind < 0.4:
        return whole(properties, of_body(random, content, by_bytes))
    try:
        if kind < 0.8:
            message: Any = amqp.Message()
            message._load_properties(60, properties, 0)
            changed: Any = amqp.Message(**of_value(random, message.properties, by_bytes))
            return whole(changed._serialize_properties(), content)
    except Exception:
        pass
    return whole(by_bytes(properties, min(len(properties) + 64, 60_000)), content)


MUTATORS = {"redis": mutate_redis, "rabbitmq": mutate_rabbitmq}
