"""A child's messages come whole and in order, however the pipe cuts them; a job goes as Celery would have sent it."""

import os
import pickle
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from select import PIPE_BUF
from struct import pack
from types import SimpleNamespace
from typing import Any

import pytest

from celery_kit.engine import pipes


def wire(word: Any) -> bytes:
    body = pickle.dumps(word)
    return pack(">i", len(body)) + body


class Handler:
    """As far as asynpool's goes."""

    def __init__(self, fd: int, heard: list[Any]) -> None:
        self.fileno_to_outq, self.on_state_change = {fd: "child"}, heard.append


class Hub:
    """Calls a pipe's reader as kombu's does: a function, or a generator that waits for more."""

    def __init__(self) -> None:
        self.readers: dict[int, Any] = {}

    def add_reader(self, fd: int, callback: Any, *args: Any) -> None:
        self.readers[fd] = callback, args

    def remove_reader(self, fd: int) -> None:
        self.readers.pop(fd, None)

    def turn(self, fd: int) -> None:
        callback, args = self.readers[fd]
        with suppress(StopIteration):
            next(callback) if isinstance(callback, Iterator) else callback(*args)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for end in (reader, writer):
        with suppress(OSError):
            os.close(end)


def listening(fd: int) -> tuple[Hub, list[Any], Any]:
    heard: list[Any] = []
    hub = Hub()
    handler = pipes.result_handler(Handler)(fd, heard)
    handler.handle_event = handler._make_process_result(hub)
    hub.add_reader(fd, handler.handle_event, fd)
    return hub, heard, handler


WORDS = [("ack", 1), ("ready", "x" * 300), None, ("ack", 2)]


@pytest.mark.parametrize("size", [1, 3, 7, 100, 10_000])
def test_messages_come_whole_however_they_are_cut(pipe: tuple[int, int], size: int) -> None:
    reader, writer = pipe
    hub, heard, _ = listening(reader)
    sent = b"".join(map(wire, WORDS))
    for start in range(0, len(sent), size):
        os.write(writer, sent[start : start + size])
        hub.turn(reader)
        hub.turn(reader)  # with nothing there
    assert heard == [word for word in WORDS if word]


def test_messages_that_are_there_together_are_heard_in_one_turn(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    hub, heard, _ = listening(reader)
    os.write(writer, b"".join(map(wire, WORDS)))
    hub.turn(reader)
    assert len(heard) == 3


@pytest.mark.parametrize("begun", [b"", wire("word")[:6]])
def test_a_child_that_is_gone_is_heard_no_more(pipe: tuple[int, int], begun: bytes) -> None:
    reader, writer = pipe
    hub, heard, _ = listening(reader)
    os.write(writer, begun)
    if begun:
        hub.turn(reader)
    os.close(writer)
    if begun:
        with pytest.raises(OSError, match="End of file"):
            hub.turn(reader)
    else:
        hub.turn(reader)
        assert not hub.readers
    assert not heard


def test_what_one_word_raises_loses_no_other(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    hub, heard, handler = listening(reader)

    def take(word: Any) -> None:
        heard.append(word)
        if word[0] == "ready":
            raise SystemExit

    handler.on_state_change = take
    handler.handle_event = handler._make_process_result(hub)
    hub.add_reader(reader, handler.handle_event, reader)
    os.write(writer, b"".join(map(wire, WORDS)))
    with pytest.raises(SystemExit):
        hub.turn(reader)
    assert len(heard) == 3


@pytest.mark.parametrize(("size", "joined"), [(10, True), (PIPE_BUF - 4, True), (PIPE_BUF, False)])
def test_a_small_job_goes_in_one_write(size: int, joined: bool) -> None:
    header, body = pack(">I", size), b"x" * size
    job = SimpleNamespace(_payload=(memoryview(header), memoryview(body), size))
    pipes.in_one_write(job)
    first, second, left = job._payload
    assert bytes(first) + bytes(second[:left]) == header + body
    assert (left == 0) == joined


def test_a_pool_that_is_closing_gives_no_job() -> None:
    pipes.in_one_write(None)


def test_a_child_that_is_free_gets_the_next_job_at_once(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    hub: Any = Hub()
    written: list[list[int]] = []
    hub.consolidate_callback, hub.on_tick = written.append, set()

    class AsynPool:
        ResultHandler = Handler

        def __init__(self) -> None:
            self.outbound_buffer: deque[str] = deque()
            self._all_inqueues, self._active_writes, self._busy_workers = {7, 8, 9}, {8}, {7, 9}
            self._result_handler = self.ResultHandler(reader, [])
            self._result_handler.on_state_change = lambda _: self._busy_workers.discard(9)

        def _create_write_handlers(self, hub: Any) -> None:
            pass

    pool: Any = pipes.async_pool(AsynPool)()
    pool._create_write_handlers(hub)
    handler = pool._result_handler
    hub.add_reader(reader, handler._make_process_result(hub), reader)
    os.write(writer, wire("ready"))
    hub.turn(reader)
    assert not written  # there was none
    pool.outbound_buffer.append("a job")
    os.write(writer, wire("ready"))
    hub.turn(reader)
    assert written == [[9]]
    pool._ticked -= 2 * pipes.FRESH  # the process was stopped meanwhile, and may not own the job any more
    os.write(writer, wire("ready"))
    hub.turn(reader)
    assert written == [[9]]
    for tick in hub.on_tick:
        tick()
    os.write(writer, wire("ready"))
    hub.turn(reader)
    assert written == [[9], [9]]
