"""Faults of kombu's compression."""

import sys
from importlib import import_module
from typing import Any

from kombu.compression import register


def zstd() -> None:
    """Have kombu compress with the zstd of Python 3.14, or of backports.zstd, which is what the kit installs.

    kombu before 5.7 knows the package zstandard alone.
    """
    zstd: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    register(zstd.compress, zstd.decompress, "application/zstd", aliases=["zstd", "zstandard"])
