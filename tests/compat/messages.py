"""Messages of clients in other languages: the envelope of each shape, and the expected outcome."""

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

RUNS, ASIDE, DROPPED = "runs", "dead letter", "dropped, or its worker ends or hangs"
Change = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Shape:
    """A shape. `what`: its description. `celery`, `kit`: the outcome there. `change` modifies the parts of a plain message."""

    what: str
    celery: str
    kit: str
    change: Change = field(compare=False)


def message(shape: Shape, queue: str, word: str) -> dict[str, Any]:
    """The parts of a message of that shape, which calls `compat.mark` with `word`."""
    task_id = str(uuid4())
    parts: dict[str, Any] = {
        "task": [[word], {}, {}],
        "raw": None,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "compat.mark", "id": task_id},
        "properties": {
            "correlation_id": task_id,
            "priority": 0,
            "delivery_mode": 2,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }
    shape.change(parts)
    return parts


def envelope(parts: dict[str, Any], separators: tuple[str, str] = (", ", ": ")) -> str:
    """The message as it is stored in a list of Redis."""
    body = parts["raw"] or json.dumps(parts["task"])
    coded = parts.get("properties", {}).get("body_encoding") == "base64"
    rest = {name: value for name, value in parts.items() if name not in ("task", "raw", "separators")}
    return json.dumps(
        {"body": b64encode(body.encode()).decode() if coded else body, **rest}, separators=parts.get("separators") or separators
    )


def header(**values: Any) -> Change:
    return lambda parts: parts["headers"].update(values)


def prop(**values: Any) -> Change:
    return lambda parts: parts["properties"].update(values)


def body(make: Callable[[Any], Any]) -> Change:
    return lambda parts: parts.update(task=make(parts["task"]))


def without(*path: str) -> Change:
    def change(parts: dict[str, Any]) -> None:
        for name in path[:-1]:
            parts = parts[name]
        del parts[path[-1]]

    return change


def part(name: str, value: Any) -> Change:
    return lambda parts: parts.update({name: value})


def then(*changes: Change) -> Change:
    def change(parts: dict[str, Any]) -> None:
        for one in changes:
            one(parts)

    return change


def first(**more: Any) -> Change:
    """Protocol 1: everything is in the body."""

    def change(parts: dict[str, Any]) -> None:
        headers = parts["headers"]
        parts["task"] = {**headers, "args": parts["task"][0], **more}
        parts["headers"] = {}

    return change


#: On every broker.
ANYWHERE = [
    Shape("headers `task` and `id`, no others", RUNS, RUNS, lambda _: None),
    Shape("protocol 1: `task`, `id`, `args` in the body", RUNS, RUNS, first()),
    Shape("protocol 1 with all that Celery 3 wrote", RUNS, RUNS, first(kwargs={}, retries=0, eta=None, expires=None, utc=True,
          callbacks=None, errbacks=None, taskset=None, chord=None, timelimit=[None, None])),
    Shape("protocol 1, `kwargs` null", DROPPED, ASIDE, first(kwargs=None)),
    Shape("protocol 1, `utc` false and an `eta` without a zone", RUNS, RUNS, first(utc=False, eta="2020-01-01T00:00:00")),
    Shape("keyword arguments null", DROPPED, ASIDE, body(lambda task: [task[0], None, {}])),
    Shape("arguments null", DROPPED, ASIDE, body(lambda task: [None, {}, {}])),
    Shape("callbacks (the third part) null", RUNS, RUNS, body(lambda task: [task[0], {}, None])),
    Shape("a body of two parts", DROPPED, ASIDE, body(lambda task: task[:2])),
    Shape("a body of four parts", DROPPED, ASIDE, body(lambda task: [*task, 1])),
    Shape("arguments that are text", DROPPED, ASIDE, body(lambda task: [task[0][0], {}, {}])),
    Shape("`eta` with Z", RUNS, RUNS, header(eta="2020-01-01T00:00:00Z")),
    Shape("`eta` with an offset", RUNS, RUNS, header(eta="2020-01-01T00:00:00+02:00")),
    Shape("`eta` without a zone", RUNS, RUNS, header(eta="2020-01-01T00:00:00")),
    Shape("`eta` as a number", DROPPED, ASIDE, header(eta=1577836800)),
    Shape("`eta` that is no time", DROPPED, ASIDE, header(eta="soon")),
    Shape("`expires` in the future, text", RUNS, RUNS, header(expires="2100-01-01T00:00:00Z")),
    Shape("`expires` as a number", DROPPED, ASIDE, header(expires=4102444800)),
    Shape("`timelimit` null", RUNS, RUNS, header(timelimit=None)),
    Shape("`timelimit` of two nulls", RUNS, RUNS, header(timelimit=[None, None])),
    Shape("`retries` null", RUNS, RUNS, header(retries=None)),
    Shape("`retries` as text", RUNS, RUNS, header(retries="0")),
    Shape("`root_id`, `parent_id`, `group` null", RUNS, RUNS, header(root_id=None, parent_id=None, group=None)),
    Shape("headers of the sender's own", RUNS, RUNS, header(tenant=7, tags=["a"], nested={"b": None})),
    Shape("an `id` that is no UUID", RUNS, RUNS, header(id="order 7")),
    Shape("an `id` that is a number", DROPPED, ASIDE, header(id=7)),
    Shape("no `id`", DROPPED, ASIDE, without("headers", "id")),
    Shape("no `correlation_id`", RUNS, RUNS, without("properties", "correlation_id")),
    Shape("no `priority`", RUNS, RUNS, without("properties", "priority")),
    Shape("content type `application/json; charset=utf-8`", DROPPED, ASIDE,
          part("content-type", "application/json; charset=utf-8")),
    Shape("no content type", DROPPED, ASIDE, part("content-type", None)),
    Shape("content type `text/plain`", DROPPED, ASIDE, part("content-type", "text/plain")),
    Shape("no content encoding", RUNS, RUNS, part("content-encoding", None)),
    Shape("a body that is no JSON", DROPPED, ASIDE, part("raw", "{")),
    Shape("a task that nobody has", DROPPED, ASIDE, header(task="nobody.has")),
]  # fmt: skip
#: For brokers on which the sender writes the envelope as text.
REDIS = [
    Shape("`exchange` null", RUNS, RUNS, prop(delivery_info={"exchange": None, "routing_key": "celery"})),
    Shape("`routing_key` null", RUNS, RUNS, prop(delivery_info={"exchange": "", "routing_key": None})),
    Shape("`delivery_info` empty", DROPPED, RUNS, prop(delivery_info={})),
    Shape("`delivery_info` null", DROPPED, RUNS, prop(delivery_info=None)),
    Shape("no `delivery_info`", DROPPED, RUNS, without("properties", "delivery_info")),
    Shape("no `delivery_tag`", DROPPED, ASIDE, without("properties", "delivery_tag")),
    Shape("a `delivery_tag` that is a number", RUNS, RUNS, prop(delivery_tag=uuid4().int % 10**9)),
    Shape("a `delivery_tag` that is null", DROPPED, ASIDE, prop(delivery_tag=None)),
    Shape("a body without base64", RUNS, RUNS, without("properties", "body_encoding")),
    Shape("`priority` null", RUNS, RUNS, prop(priority=None)),
    Shape("`priority` as text", RUNS, RUNS, prop(priority="5")),
    Shape("properties of the sender's own", RUNS, RUNS, prop(app="shop", nested={"a": 1})),
    Shape("JSON without spaces", RUNS, RUNS, part("separators", (",", ":"))),
    Shape("`headers` null, protocol 1", RUNS, RUNS, then(first(), part("headers", None))),
    Shape("no `headers`, protocol 1", RUNS, RUNS, then(first(), without("headers"))),
    Shape("`content-type` and `content-encoding` left out", DROPPED, ASIDE,
          then(without("content-type"), without("content-encoding"))),
    Shape("no `properties`", DROPPED, ASIDE, without("properties")),
]  # fmt: skip
