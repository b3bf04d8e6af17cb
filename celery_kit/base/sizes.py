"""How large a message may be: its bytes, the depth of its JSON, and the number of its elements, which are counted in its text;
and how its text may be encoded.

A list of empty lists takes twenty times the memory of its text.
"""

import codecs
import os
import re
from collections.abc import Mapping
from functools import cache

from celery_kit.base.refusals import whole_number

#: How deep JSON may be nested. Python's own encoder and decoder, and much that Celery does with arguments, are recursive.
DEPTH = 200
#: A body may have so many elements, for the bytes that it may have: a million of them by default.
BYTES_OF_AN_ELEMENT = 16

#: What tells the structure of JSON; everything else in its text can be left out.
_STRUCTURE = b'"[]{},'
_OTHERS, _NOT_BRACKETS = (bytes(set(range(256)) - set(kept)) for kept in (_STRUCTURE, b"[]{}"))
_STRING = re.compile(rb'"[^"]*"')
_TOO_DEEP = re.compile(rb"[\[{]{%d}" % (DEPTH + 1))

#: Encodings of a body, by the names that Python's codecs have. Others are not for texts, or take time that grows with the
#: square of their length.
ENCODINGS = frozenset(("utf-8", "ascii", "iso8859-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"))


@cache
def most() -> int:
    """MESSAGE_MOST: the most bytes of a message's body, as it arrives and decompressed."""
    return message_most()


def message_most(environ: Mapping[str, str] = os.environ) -> int:
    """The value of MESSAGE_MOST, checked. Refuses an invalid one: one line, exit code 2."""
    return whole_number("MESSAGE_MOST", environ.get("MESSAGE_MOST") or str(16 * 1024 * 1024), 1024, 2**30, "bytes")


def too_large(text: str | bytes, times: int = 1) -> str | None:
    """Why the JSON of a message is too large or too deep to be used; None if it is not. Other content has only a size.

    `times`: it may be so many times as large as a body, because it holds one in another form.
    """
    size = len(text)
    if size > times * most():
        return f"it is larger than {most():,} bytes (MESSAGE_MOST)"
    if size < DEPTH:
        return None
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    allowed = most() // BYTES_OF_AN_ELEMENT
    many = size > allowed and brackets + (text.count(",") if isinstance(text, str) else text.count(b",")) > allowed
    if not many and brackets <= DEPTH:
        return None
    structure = _structure(text)
    if many and _elements(structure, allowed) > allowed:
        return f"it has more than {allowed:,} elements (a sixteenth of MESSAGE_MOST)"
    if _is_deep(structure):
        return f"it is nested deeper than {DEPTH} levels"
    return None


def _structure(text: str | bytes) -> bytes:
    """The quotes, brackets and commas of JSON, without strings that hold none of these. It takes no more than twice the text.

    Its escapes are removed first: a quote may be escaped, and so may the backslash before a quote.
    """
    whole = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if b"\\" in whole:
        whole = whole.replace(b"\\\\", b"").replace(b'\\"', b"")
    return whole.translate(None, _OTHERS).replace(b'""', b"")


def _elements(structure: bytes, allowed: int) -> int:
    """How many elements JSON has, roughly. `allowed`: what is certainly above it is not counted."""
    strings = structure.count(b'"') // 2
    if strings > 2 * allowed:  # each is an element, or a key of one
        return strings
    within = sum(found.group().count(b",") for found in _STRING.finditer(structure))
    return structure.count(b",") - within + strings // 2


def _is_deep(structure: bytes) -> bool:
    """Whether JSON is nested deeper than DEPTH."""
    brackets = _STRING.sub(b"", structure).translate(None, _NOT_BRACKETS)
    for _ in range(DEPTH):
        if _TOO_DEEP.search(brackets):
            return True
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(brackets):  # none is left, or it is no JSON
            return False
        brackets = fewer
    return bool(brackets)


def is_for_texts(encoding: object) -> bool:
    """Whether a content encoding is none - `binary` is kombu's word for that - or one that only decodes text."""
    if encoding is None or encoding == "binary":
        return True
    return type(encoding) is str and len(encoding) < 100 and _codec(encoding) in ENCODINGS


@cache
def _codec(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except (LookupError, ValueError):  # ValueError: a null character
        return ""
