"""JSON as kombu writes and reads it, with less work for what most messages and results hold.

kombu's decoder asks a function about every object, for types that few use; json's own looks for white space around a text, and
its encoder makes an iterator for a single number.
Source: kombu/utils/json.py 5.7.0; json/decoder.py.
"""

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

from celery_kit.engine.parts import on

JSON = "application/json"
_QUICK = on("quick_json")

# kombu-stubs are those of an older one.
kombus: Any = import_module("kombu.utils.json")
serialization: Any = import_module("kombu.serialization")

_decoder = json.JSONDecoder()
_scan: Any = vars(_decoder)["scan_once"]
_any: Callable[[Any], str] = kombus.JSONEncoder().encode

#: A text in quotes.
quoted: Callable[[str], str] = json.encoder.encode_basestring_ascii
_WRITERS: dict[type, Callable[[Any], str]] = {
    str: quoted,
    int: int.__repr__,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _: "null",
}


def kombus_reader() -> bool:
    """JSON is read by kombu's own decoder, and not by one that somebody has registered in its place."""
    return serialization.registry._decoders.get(JSON) is kombus.loads


def kombus_writer() -> bool:
    """And written by its own encoder."""
    encoder = serialization.registry._encoders.get("json")
    return encoder is not None and encoder.encoder is kombus.dumps


def parse(text: str) -> Any:
    """What a text says. Raises ValueError."""
    if not _QUICK or "__type__" in text:
        return kombus.loads(text)
    try:
        found, end = _scan(text, 0)
    except StopIteration:
        end = -1
    return found if end == len(text) else _decoder.decode(text)  # it has white space around it, or is none


def text_of(value: Any) -> str:
    """A value as JSON. Raises TypeError, ValueError."""
    write = _WRITERS.get(type(value), _any)
    return write(value) if _QUICK else str(kombus.dumps(value))
