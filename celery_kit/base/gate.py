"""The gate: what a message may be, decided before anything of it is used.

Celery reads headers and bodies as their senders made them. A list in place of an id, a header that is nested 5,000 deep, or one
megabyte that becomes a thousand ends a worker, takes a slot of its pool for good, or fills its memory; and the broker delivers
the message again. Here a message is looked at as it arrives: its size, the types and lengths of the headers that Celery or the
kit reads, how deep its JSON is and of how many elements, and the shape of its arguments and callbacks. What does not pass is
dead-lettered with the reason (`celery_kit/worker/dead_lettering.py`). Compressed bodies are bounded while they are decompressed
(`celery_kit/fixes/compression.py`).

A plain message costs two to three microseconds: brackets and commas are counted, those in strings too, and only a message with
more of them than the limits allow is looked at closely.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from celery_kit.base.correlation import SENT
from celery_kit.base.messages import DELIVERIES, SIGNATURE
from celery_kit.base.sizes import is_for_texts, too_large

if TYPE_CHECKING:
    from celery_kit.base.types import Headers, Message

TEXT, NUMBER, FLAG = (str,), (int,), (bool, int)
#: The types of the headers that Celery or the kit reads, besides None. With protocol 1 they are in the body.
KINDS: Mapping[str, frozenset[type]] = {
    **dict.fromkeys(
        (
            "task", "id", "lang", "root_id", "parent_id", "group", "taskset", "shadow", "argsrepr", "kwargsrepr", "origin",
            "reply_to", "correlation_id", "compression", SIGNATURE,
        ),
        frozenset(TEXT),
    ),
    **dict.fromkeys(("group_index", "replaced_task_nesting", DELIVERIES), frozenset(NUMBER)),
    "retries": frozenset((int, str)),  # some clients of other languages write a text
    **dict.fromkeys(("eta", "expires"), frozenset((str, datetime))),
    **dict.fromkeys(("ignore_result", "utc"), frozenset(FLAG)),
    **dict.fromkeys(("stamps", "headers"), frozenset((dict,))),
    **dict.fromkeys(("timelimit", "stamped_headers", "callbacks", "errbacks", "chain"), frozenset((list, tuple))),
    "chord": frozenset((dict,)),
    SENT: frozenset((int, float)),
}  # fmt: skip
#: The headers that become keys, names of files or words of a log: printable, and no longer than AMQP's short texts.
NAMES = ("task", "id", "root_id", "parent_id", "group", "shadow", "reply_to", "correlation_id")
LONGEST = 255
#: What Celery's client writes for a task without time limits.
NO_LIMITS = [None, None]
#: The headers whose values are looked at one by one, where a message has one of them.
RARE = frozenset(
    ("taskset", "reply_to", "correlation_id", "retries", "group_index", "replaced_task_nesting", DELIVERIES,
     "stamped_headers", "callbacks", "errbacks", "chain", "chord"),
)  # fmt: skip
#: The largest whole number in a header, and the longest time limit in seconds.
MOST_NUMBER, MOST_SECONDS = 2**31, 1e8
#: The parts of a body that hold signatures.
CALLBACKS = ("callbacks", "errbacks", "chain", "chord")
_SPEAKING = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table", list: "a list"}


def refusal(message: Message) -> str | None:
    """Why a message is not let in; None if it is. Its body is not decoded for it."""
    headers, properties = message.headers, message.properties
    reply_to, correlation_id = properties.get("reply_to"), properties.get("correlation_id")
    if (reply_to and type(reply_to) is not str) or (correlation_id and type(correlation_id) is not str):
        return "its property reply_to or correlation_id is not a text"
    if type(headers) is dict:
        for name, value in headers.items():
            if value is not None and name in KINDS and type(value) not in KINDS[name]:
                return f"its header {shown(name)} is not {_speaking(name)}"
        get = headers.get
        task_id, limits = get("id"), get("timelimit")
        # Where all names together are short and printable, each is.
        names = (
            f"{get('task')}{task_id}{get('root_id')}{get('parent_id')}{get('group')}{get('shadow')}{reply_to}{correlation_id}"
        )
        rare = not RARE.isdisjoint(headers) and any(map(get, RARE))
        odd = rare or len(names) > LONGEST or not names.isprintable() or (limits and limits != NO_LIMITS)
        if odd:
            if why := _wrong(headers, properties):
                return why
            _count_retries(headers)
        if not task_id and get("task"):
            return "it has no id"
        if get("eta") == "" or get("expires") == "":
            return "its header eta or expires is empty"
    body, encoding = message.body, message.content_encoding
    if encoding != "utf-8" and not is_for_texts(encoding):
        return f"its content encoding is {shown(encoding)}"
    if type(body) is not str and type(body) is not bytes:
        return "its body is neither text nor bytes" if not isinstance(body, bytearray | memoryview) else too_large(bytes(body))
    return too_large(body)


def _wrong(headers: Mapping[str, object], properties: Mapping[str, object]) -> str | None:
    """What is wrong with the values of headers and properties whose types are right."""
    get = headers.get
    for kind, among in (("header", headers), ("property", properties)):
        for name in NAMES:
            value = among.get(name)
            if isinstance(value, str) and (len(value) > LONGEST or not value.isprintable()):
                return f"its {kind} {name} is longer than {LONGEST} characters, or not printable"
    for name in ("retries", "group_index", "replaced_task_nesting", DELIVERIES):
        if (number := get(name)) and not _is_count(number):
            return f"its header {name} is no number from 0 to {MOST_NUMBER:,}"
    if (limits := get("timelimit")) and not _are_limits(limits):
        return "its time limits are not two numbers"
    if (stamped := get("stamped_headers")) and not all(type(one) is str for one in stamped):  # type: ignore[attr-defined]
        return "its header stamped_headers is no list of names"
    if wrong := wrong_callback(headers):
        return f"its header {wrong} holds something else than signatures"
    return None


def _count_retries(headers: Headers) -> None:
    """Make the retries a number, where they are a text of one: Celery and the kit count on."""
    if type(retries := headers.get("retries")) is str:
        headers["retries"] = int(retries)


def _is_count(given: object) -> bool:
    """Whether it is a whole number that is not negative, or a text of one."""
    if isinstance(given, str):
        return given.isdecimal() and len(given) < 10
    return isinstance(given, int) and 0 <= given < MOST_NUMBER


def _are_limits(given: object) -> bool:
    """Whether it is a hard and a soft time limit: each a number of seconds, or None."""
    if not isinstance(given, list | tuple) or len(given) != 2:
        return False
    return all(map(is_limit, given))


def is_limit(given: object) -> bool:
    """Whether it is a time limit: a number of seconds, or None."""
    return given is None or (type(given) in (int, float) and 0 <= given <= MOST_SECONDS)  # type: ignore[operator]


def refuse_payload(message: Message) -> None:
    """Decode a body, which the caller has let in, and check it. Raises TypeError for one of the wrong shape."""
    try:
        payload = message.payload
    except Exception:  # Celery's handler reports what is wrong
        return
    headers = message.headers if isinstance(message.headers, dict) else {}
    if isinstance(payload, dict) and ("task" in payload or "args" in payload):  # protocol 1, or its body with headers of 2
        for name, value in payload.items():
            if value is not None and name in KINDS and type(value) not in KINDS[name]:
                raise TypeError(f"its {shown(name)} is not {_speaking(name)}")
        if why := _wrong(payload, {}) or (None if payload.get("id") else "it has no id"):
            raise TypeError(why)
        if not isinstance(payload.get("args") or [], list | tuple) or not isinstance(payload.get("kwargs") or {}, dict):
            raise TypeError("its body is no arguments and keyword arguments")
        _count_retries(payload)
    elif headers.get("task"):  # Celery would unpack a text of three characters, too
        args, kwargs, embed = payload if isinstance(payload, list | tuple) and len(payload) == 3 else (None, None, None)
        if not (isinstance(args, list | tuple) and isinstance(kwargs, dict) and isinstance(embed or {}, dict)):
            raise TypeError("its body is no arguments, keyword arguments and callbacks")
        if name := wrong_callback(embed or {}):
            raise TypeError(f"its {name} holds something else than signatures")


def wrong_callback(embed: Mapping[str, object]) -> str | None:
    """The first of the callbacks, errbacks and chain of a body that is no list of signatures, or its chord that is none."""
    for name in CALLBACKS:
        if given := embed.get(name):
            several = (given,) if name == "chord" else given if isinstance(given, list | tuple) else (None,)
            if not all(map(_is_signature, several)):
                return name
    return None


def _is_signature(one: object) -> bool:
    if not isinstance(one, dict) or type(one.get("task")) is not str:
        return False
    return (
        isinstance(one.get("args") or [], list | tuple)
        and isinstance(one.get("kwargs") or {}, dict)
        and isinstance(one.get("options"), dict)  # Celery's handlers of a failure read it
        and isinstance(one.get("subtask_type") or "", str)
    )


def shown(value: object) -> str:
    """A value of a hostile message in a line of a log."""
    return ascii(value if isinstance(value, str | int | float | None) else type(value).__name__)[:100]


def _speaking(name: str) -> str:
    return " or ".join(sorted({_SPEAKING.get(kind, kind.__name__) for kind in KINDS[name] if kind is not tuple}))
