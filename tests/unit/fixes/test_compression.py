"""Compression: fixes zstd and bounded."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import compression
from kombu.compression import compress, decompress
from kombu.message import Message

from celery_kit.base import sizes
from celery_kit.fixes.compression import TooLargeError, bounded, zstd

KINDS = ("zlib", "bzip2", "lzma", "zstd", "brotli")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit of 100,000 bytes, and kombu's table as it was afterwards."""
    tables = [vars(compression)[name] for name in ("_encoders", "_decoders", "_aliases")]
    former = [dict(table) for table in tables]
    monkeypatch.setattr("celery_kit.fixes.compression.most", lambda: 100_000)
    bounded()
    yield
    for table, was in zip(tables, former, strict=True):
        table.clear()
        table.update(was)


def errors(body: bytes, kind: str) -> list[Any]:
    """What kombu notes of a message's body that cannot be decompressed."""
    made: Any = Message
    return list(made(body, headers={"compression": kind}).errors)


def test_zstd_is_pythons_own() -> None:
    zstd()
    body, kind = compress(b"body" * 100, "zstd")
    assert (decompress(body, kind), kind) == (b"body" * 100, "application/zstd")


@pytest.mark.parametrize("kind", KINDS)
def test_what_becomes_too_large(few: None, kind: str) -> None:
    """It is stopped at the limit, in little memory, and the message says why."""
    body, name = compress(bytes(50_000_000), kind)
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="it becomes larger than 100,000 bytes"):
            decompress(body, name)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # lzma has a dictionary of 8 MiB
    finally:
        tracemalloc.stop()
    ((_, error, _),) = errors(body, name)
    assert isinstance(error, TooLargeError)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_small_enough_is_kombus(few: None, kind: str) -> None:
    for size in (0, 1, 70_000, 100_000):
        body, name = compress(b"x" * size, kind)
        assert decompress(body, name) == b"x" * size


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_is_refused(few: None, kind: str) -> None:
    body, name = compress(bytes(range(256)) * 100, kind)
    for part in (body[:-1], body[: len(body) // 2], b"no such data"):
        assert errors(part, name)


def test_celery_still_needs_the_fix() -> None:
    """If this fails, the fix bounded may go."""
    body, name = compress(bytes(sizes.message_most({}) + 1), "zlib")
    assert not errors(body, name)
