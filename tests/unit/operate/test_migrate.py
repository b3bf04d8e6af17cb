"""What `make migrate` refuses, before it changes anything. celery_kit/operate/migrate.py"""

import os
import subprocess
import sys

import pytest

from celery_kit.base.target import ROOT
from tests.harness.servers import Server
from tests.migrate.ends import Place, fill, found


def said(**given: str) -> tuple[int, str]:
    """The exit code, and what is on standard error."""
    argv = [sys.executable, "-m", "celery_kit.operate.cli", "migrate"]
    environ = {name: value for name, value in os.environ.items() if name not in ("FROM", "TO", "BROKER")}
    done = subprocess.run(argv, cwd=ROOT, env={**environ, **given}, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "FROM and TO are both needed"),
        ({"FROM": "redis"}, "FROM and TO are both needed"),
        ({"FROM": "redis", "TO": "kafka"}, "TO=kafka is not known; allowed: "),
        ({"FROM": "redis", "TO": "redis"}, "FROM and TO are the same"),
        ({"FROM": "redis://:secret@127.0.0.1:1/0", "TO": "redis://127.0.0.1:2/0"}, "127.0.0.1:1/0 cannot be reached"),
        ({"FROM": "sqs://key:secret@", "TO": "redis://127.0.0.1:2/0"}, "allowed are URLs that begin with amqp"),
    ],
)
def test_it_says_in_one_line_what_is_wrong(given: dict[str, str], expected: str) -> None:
    code, text = said(**given)
    assert code == 2
    assert expected in text
    assert text.count("\n") == 1
    assert "secret" not in text


def test_one_place_under_two_addresses_is_refused() -> None:
    with Server() as server:
        place = Place(f"redis://127.0.0.1:{server.port}/0")
        fill(place, 3)
        before = found(place)
        code, text = said(FROM=place.url, TO=f"redis://localhost:{server.port}/0")
        assert (code, "are the same place" in text) == (2, True), text
        assert found(place) == before


def test_a_target_without_memory_for_it_is_refused() -> None:
    with Server() as server, Server() as other:
        fill(Place(f"redis://127.0.0.1:{server.port}/0"), 3)
        other.broker.config_set("maxmemory", "1")
        code, text = said(FROM=f"redis://127.0.0.1:{server.port}/0", TO=f"redis://127.0.0.1:{other.port}/0")
        assert (code, "has room for 0 MB" in text) == (2, True), text
        assert server.broker.llen("celery") == 1
