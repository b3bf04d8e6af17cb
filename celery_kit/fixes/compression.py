"""Faults of kombu's compression."""

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Protocol

from kombu.compression import register

from celery_kit.base.sizes import most

ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
#: The most memory of a decompressor of lzma, in bytes. Its largest preset takes 65 MiB.
MEMORY = 128 * 1024 * 1024
#: The bytes that brotli decompresses at once.
STEP = 65_536


class Decompressor(Protocol):
    """What zlib, bz2, lzma and zstd decompress with."""

    @property
    def eof(self) -> bool:
        """Whether the whole content was there."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class TooLargeError(ValueError):
    """What is decompressed becomes larger than a message may be."""

    def __init__(self) -> None:
        super().__init__(f"it becomes larger than {most():,} bytes (MESSAGE_MOST)")


def zstd() -> None:
    """Have kombu compress with the zstd of Python 3.14, or of backports.zstd, which the kit installs for earlier versions.

    kombu before 5.7 supports only the package zstandard.
    """
    zstd = import_module(ZSTD)
    register(zstd.compress, zstd.decompress, "application/zstd", aliases=["zstd", "zstandard"])


def bounded(**_: object) -> None:
    """Have a worker decompress a body only as far as a message may be large: one megabyte of zlib becomes a thousand."""
    register(zlib.compress, _until(zlib.decompressobj), "application/x-gzip")
    register(bz2.compress, _until(bz2.BZ2Decompressor), "application/x-bz2")
    register(lzma.compress, _until(lambda: lzma.LZMADecompressor(memlimit=MEMORY)), "application/x-lzma")
    with suppress(ImportError):
        found = import_module(ZSTD)
        register(found.compress, _until(found.ZstdDecompressor), "application/zstd")
    with suppress(ImportError):
        register(import_module("brotli").compress, _unbrotli, "application/x-brotli")


def _until(decompressor: Callable[[], Decompressor]) -> Callable[[bytes], bytes]:
    """A function that decompresses with such an object. It raises TooLargeError."""

    def decompress(data: bytes) -> bytes:
        one = decompressor()
        found = one.decompress(data, most() + 1)
        if len(found) > most():
            raise TooLargeError
        if not one.eof:
            raise ValueError("its compressed content is cut off")
        return found

    return decompress


def _unbrotli(data: bytes) -> bytes:
    one, found, size = import_module("brotli").Decompressor(), list[bytes](), 0
    while not one.is_finished():
        found.append(one.process(b"" if found else data, output_buffer_limit=STEP))
        size += len(found[-1])
        if size > most():
            raise TooLargeError
        if not found[-1] and not one.is_finished():
            raise ValueError("its compressed content is cut off")
    return b"".join(found)
