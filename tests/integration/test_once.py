"""Effects once: duplicates of every kind, and what `@once` makes of them. An effect is a line in a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from kombu.utils.uuid import uuid

from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell


def effects(cell: Cell, file: str) -> int:
    path = cell.running.data / file
    return path.read_text().count("effect") if path.exists() else 0


def reached(cell: Cell, file: str, number: int) -> bool:
    return effects(cell, file) == number


@pytest.fixture
def file() -> str:
    return f"once-{uuid()}"


@contextmanager
def gate(cell: Cell, file: str) -> Iterator[str]:
    """A gate for effects to wait at, once they have begun; open at the end."""
    name = f"{file}.gate"
    try:
        yield name
    finally:
        (cell.running.data / name).touch()


def begun(cell: Cell, file: str) -> bool:
    return (cell.running.data / f"{file}.begun").exists()


def give_back(cell: Cell) -> None:
    """Have the broker hand out again what a dead worker held, where it would wait for the visibility timeout."""
    with cell.app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        if hasattr(channel, "unacked_index_key"):
            for tag in channel.client.zrange(channel.unacked_index_key, 0, -1):
                channel.client.zadd(channel.unacked_index_key, {tag: 0})
            channel.qos.restore_visible(num=1_000, interval=1)


def test_once(cell: Cell, file: str) -> None:
    """The same arguments, sent twice, have one effect; both get its result. Other arguments are another effect."""
    first, second = (cell.run("once_probes.guarded", file) for _ in range(2))
    assert first == second == f"effect on {file}"
    assert effects(cell, file) == 1
    assert cell.run("once_probes.guarded", f"{file}.other") == f"effect on {file}.other"


def test_once_key(cell: Cell, file: str) -> None:
    """A function names what makes two runs the same: here an order's number, whatever its text."""
    assert cell.run("once_probes.guarded_by_order", file, 7, "one") == f"effect on {file}one"
    assert cell.run("once_probes.guarded_by_order", file, 7, "two") == f"effect on {file}one"
    assert cell.run("once_probes.guarded_by_order", file, 8, "three") == f"effect on {file}three"
    assert effects(cell, file) == 2


def test_once_same_message(cell: Cell, file: str) -> None:
    """A message that is delivered twice has one effect; the same call sent anew has another. Without @once: two for one."""
    for task, each in (("once_probes.unguarded", 2), ("once_probes.guarded_by_message", 1)):
        name = f"{file}.{each}"
        twice = [cell.send(task, name, task_id=f"twice-{name}") for _ in range(2)]
        for result in twice:
            result.get(timeout=WAIT)
        until("both messages are done", partial(reached, cell, name, each))
        cell.run(task, name)
        assert effects(cell, name) == each + 1


def test_once_at_the_same_time(cell: Cell, file: str) -> None:
    """A duplicate that arrives while the first runs is put off, and then gets its result."""
    with gate(cell, file) as name:
        sent = [cell.send("once_probes.guarded_briefly", file, name) for _ in range(3)]
        until("one has begun", lambda: begun(cell, file))
    assert [result.get(timeout=WAIT) for result in sent] == [f"effect on {file}"] * 3
    assert effects(cell, file) == 1


def test_once_after_a_failure(cell: Cell, file: str) -> None:
    """A run that fails gives its key free: the retry has the effect, later runs its result."""
    assert cell.run("once_probes.guarded_and_fails_once", file) == f"effect on {file}"
    assert cell.run("once_probes.guarded_and_fails_once", file) == f"effect on {file}"
    assert effects(cell, file) == 1


def test_once_after_a_kill(cell: Cell, file: str) -> None:
    """A worker killed before the effect: the message runs again elsewhere once the claim has run out, with one effect."""
    spare = cell.running.worker("spare")
    with gate(cell, file) as name:
        result = cell.send("once_probes.guarded_briefly", file, name, queue="spare")
        until("it has begun", lambda: begun(cell, file))
        spare.docker.kill()
        spare.exit_code()
    give_back(cell)
    cell.running.worker("spare")
    assert result.get(timeout=WAIT) == f"effect on {file}"
    assert effects(cell, file) == 1
