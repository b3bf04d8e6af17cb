"""The handler that writes a worker's log in batches, on pipes and in processes of its own."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TextIO

import pytest

from celery_kit.base.target import ROOT
from celery_kit.observe import log_writer
from tests.harness.waiting import until


@dataclass
class Pipe:
    """A log of the test, and what has been written to it so far."""

    stream: TextIO
    reader: int
    text: str = ""

    def read(self) -> str:
        try:
            while data := os.read(self.reader, 1_000_000):
                self.text += data.decode()
        except BlockingIOError:
            pass
        return self.text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stream:
        one = Pipe(stream, reader)
        yield one
        os.close(one.reader)


@pytest.fixture
def log(pipe: Pipe) -> logging.Logger:
    logger = logging.Logger("batched", logging.INFO)
    handler = log_writer.handler(pipe.stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    return logger


@pytest.fixture
def for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that waits is not written because of its age."""
    monkeypatch.setattr(log_writer, "SECONDS", 3_600.0)


@pytest.mark.usefixtures("for_ever")
def test_lines_wait_for_each_other_and_an_error_for_none(log: logging.Logger, pipe: Pipe) -> None:
    log.info("first")
    assert pipe.read() == "first\n", "there was no other line for a long time"
    log.info("second")
    log.warning("third")
    assert pipe.read() == "first\n"
    log.error("fourth")
    assert pipe.read() == "first\nsecond\nthird\nfourth\n"


@pytest.mark.usefixtures("for_ever")
def test_many_lines_do_not_wait(log: logging.Logger, pipe: Pipe) -> None:
    for number in range(1 + log_writer.LINES):
        log.info("%d", number)
    assert pipe.read().split() == [str(number) for number in range(1 + log_writer.LINES)]


def test_a_line_is_written_though_no_other_follows(log: logging.Logger, pipe: Pipe) -> None:
    log.info("first")
    log.info("second")
    until("it is written", lambda: pipe.read() == "first\nsecond\n", 30)


@pytest.mark.usefixtures("for_ever")
def test_nothing_waits_at_the_end(log: logging.Logger, pipe: Pipe) -> None:
    """And what is logged after logging.shutdown() does not wait at all."""
    log.info("first")
    log.info("second")
    log.handlers[0].close()
    assert pipe.read() == "first\nsecond\n"
    log.info("third")
    assert pipe.read() == "first\nsecond\nthird\n"


def test_threads_and_children_write_whole_lines_in_order(log: logging.Logger, pipe: Pipe) -> None:
    """Also to a pipe that is full again and again, because nobody reads while lines are written."""
    lines = [(f"{number} " + "x" * (number % 1_500)) for number in range(2_000)]

    def write(name: str) -> None:
        for line in lines:
            log.info("%s %s", name, line)

    children = []
    for name in ("one", "two"):
        if not (child := os.fork()):
            write(name)
            log.handlers[0].flush()
            os._exit(0)
        children.append(child)
    threads = [threading.Thread(target=write, args=(name,)) for name in ("three", "four")]
    for thread in threads:
        thread.start()
    until("all are written", lambda: pipe.read().count("\n") == 4 * len(lines), 60)
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = sorted((line.split(" ", 1) for line in pipe.text.splitlines()), key=lambda words: words[0])
    assert {name: [line for _, line in written] for name, written in groupby(found, lambda words: words[0])} == dict.fromkeys(
        ("one", "two", "three", "four"), lines
    )


@pytest.mark.usefixtures("for_ever")
def test_a_forked_child_does_not_repeat_what_waits(log: logging.Logger, pipe: Pipe) -> None:
    log.info("first")
    log.info("the parent's")
    if not (child := os.fork()):
        log.error("the child's")
        os._exit(0)
    os.waitpid(child, 0)
    log.handlers[0].flush()
    assert pipe.read().splitlines() == ["first", "the child's", "the parent's"]


def _says(log: logging.Logger, *words: str) -> None:
    """Log errors in a child, which ends when they are written."""
    if not (child := os.fork()):
        for word in words:
            log.error(word)
        (handler,) = log.handlers
        assert isinstance(handler, log_writer.Handler)
        until("they are written", lambda: not handler.writer._lines, 30)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def parent(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A log of a process that has had a child, and counts its lines from then on."""
    monkeypatch.setattr(log_writer, "SECONDS", 1.0)
    _says(log)
    return log


def test_a_childs_lines_wait_for_those_of_its_parent(parent: logging.Logger, pipe: Pipe) -> None:
    """The parent's tells of a task's arrival, and the child's of its end."""
    parent.info("first")
    parent.info("received")
    _says(parent, "raised", "raised again")
    assert pipe.read().splitlines() == ["first", "received", "raised", "raised again"]


def test_a_childs_lines_do_not_wait_for_ever(parent: logging.Logger, pipe: Pipe) -> None:
    """The parent may have been killed before it has written its own."""
    (handler,) = parent.handlers
    assert isinstance(handler, log_writer.Handler) and handler.writer.progress
    handler.writer.progress.log()
    _says(parent, "raised")
    assert pipe.read().splitlines() == ["raised"]


#: Logs, and then computes without an end.
BUSY = """
import logging, sys, time
from celery_kit.observe import log_writer
logging.getLogger().addHandler(log_writer.handler(sys.__stderr__))
logging.getLogger().setLevel(logging.INFO)
for number in range(3):
    logging.info("%d", number)
while True:
    pass
"""


@pytest.mark.parametrize(
    "patch", ["", "from gevent import monkey; monkey.patch_all()", "import eventlet; eventlet.monkey_patch()"]
)
def test_lines_are_written_while_a_task_computes(patch: str) -> None:
    """On the green pools too, where nothing else runs meanwhile. A worker that is killed then has lost nothing."""
    command = [sys.executable, "-W", "ignore", "-c", patch + BUSY]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        try:
            assert [process.stderr.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        finally:
            process.kill()


#: A signal's handler logs in the middle of lines that are written.
SIGNALLED = """
import logging, os, signal, sys
from celery_kit.observe import log_writer
log_writer.LINES = 2
logging.getLogger().addHandler(log_writer.handler(sys.__stderr__))
logging.getLogger().setLevel(logging.INFO)
signal.signal(signal.SIGALRM, lambda *_: logging.info("signal"))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for number in range(20_000):
    logging.info("%d", number)
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_signals_handler_may_log() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and "signal" in lines
    assert len(lines) - lines.count("signal") == 20_000


def test_a_reader_that_has_gone_fails_nothing(log: logging.Logger, pipe: Pipe) -> None:
    os.close(pipe.reader)
    pipe.reader = os.open(os.devnull, os.O_RDONLY)
    log.error("nobody reads this")
