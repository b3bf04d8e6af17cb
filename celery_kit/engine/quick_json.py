"""JSON as kombu writes and reads it, in less time for most messages and results.

kombu's decoder calls a function for every object, to find rare types. json's own decoder skips white space around a text, and
its encoder makes an iterator for a single number.
Source: kombu/utils/json.py 5.7.0; json/decoder.py.
"""

import json
from collections.abc import Callable
from typing import Any

from kombu import serialization
from kombu.utils import json as kombus

from celery_kit.engine.parts import on

JSON = "application/json"
_QUICK = on("quick_json")

#: kombu's serializers, by name, and deserializers, by content type: those that are registered now.
encoders: dict[str, serialization.codec] = vars(serialization)["registry"]._encoders
decoders: dict[str, Callable[[str], object]] = vars(serialization)["registry"]._decoders

_decoder = json.JSONDecoder()
_scan: Callable[[str, int], tuple[object, int]] = vars(_decoder)["scan_once"]
_any: Callable[[object], str] = kombus.JSONEncoder().encode

#: A text in quotes.
quoted: Callable[[str], str] = json.encoder.encode_basestring_ascii
_WRITERS: dict[type, Callable[..., str]] = {
    str: quoted,
    int: int.__repr__,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _: "null",
}


def kombus_reader() -> bool:
    """Whether kombu's own decoder reads JSON, and not one that has been registered in its place."""
    return decoders.get(JSON) is kombus.loads


def kombus_writer() -> bool:
    """Whether kombu's own encoder writes JSON, and not one that has been registered in its place."""
    encoder = encoders.get("json")
    return encoder is not None and encoder.encoder is kombus.dumps


def parse(text: str) -> Any:
    """The value of a JSON text, of the type that its sender chose, as json.loads. Raises ValueError."""
    if not _QUICK or "__type__" in text:
        return kombus.loads(text)
    try:
        found, end = _scan(text, 0)
    except StopIteration:
        end = -1
    return found if end == len(text) else _decoder.decode(text)  # white space around it, or no JSON


def text_of(value: object) -> str:
    """A value as JSON. Raises TypeError or ValueError for one that JSON cannot represent."""
    write = _WRITERS.get(type(value), _any)
    return write(value) if _QUICK else str(kombus.dumps(value))
