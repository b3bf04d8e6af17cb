"""Faults of kombu's compression."""

import sys
from importlib import import_module

from kombu.compression import register


def zstd() -> None:
    """Have kombu compress with the zstd of Python 3.14, or of backports.zstd, which the kit installs for earlier versions.

    kombu before 5.7 supports only the package zstandard.
    """
    zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    register(zstd.compress, zstd.decompress, "application/zstd", aliases=["zstd", "zstandard"])
