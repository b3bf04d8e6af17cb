"""Compression: fix zstd."""

from kombu.compression import compress, decompress

from celery_kit.fixes.compression import zstd


def test_zstd_is_pythons_own() -> None:
    zstd()
    body, kind = compress(b"body" * 100, "zstd")
    assert (decompress(body, kind), kind) == (b"body" * 100, "application/zstd")
