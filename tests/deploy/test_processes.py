"""The embedded stack's processes: what a command may end, and what it says where it could not."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deploy.conftest import Checkout, clone
from tests.harness.waiting import until

NO_DOCKER = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}

#: Sends a signal to a process in the moment in which it has started another one whose command line holds AT.
SIGNAL = """
import os, signal, subprocess
start = subprocess.Popen.__init__

def init(self, args, *more, **options):
    start(self, args, *more, **options)
    if os.environ["AT"] in " ".join(map(str, args)):
        os.kill(os.getpid(), getattr(signal, os.environ["SENDS"]))

subprocess.Popen.__init__ = init
"""


def processes(checkout: Checkout) -> dict[int, str]:
    """Those that work in a checkout's folder, by id: their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cwd").resolve().is_relative_to(checkout.folder):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


@pytest.fixture
def home(checkout: Checkout) -> Iterator[Path]:
    """The embedded stack's folder; nothing of it runs before and after a test."""
    yield checkout.folder / ".kit/embedded"
    for pid in processes(checkout):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def stack(checkout: Checkout, home: Path) -> Path:
    """The same, of a stack that runs."""
    assert checkout.make("up", "POOL=solo", **NO_DOCKER).returncode == 0
    return home


def supervisor(checkout: Checkout, **environ: str) -> subprocess.Popen[bytes]:
    """The embedded stack in the foreground, as `make up` starts it."""
    (checkout.folder / ".kit/embedded").mkdir(parents=True, exist_ok=True)
    with open(checkout.folder / ".kit/embedded/stack.log", "wb") as log:
        return subprocess.Popen(
            [".venv/bin/python", "-m", "celery_kit.operate.stacks.embedded", "solo", "redis", "1", "up"],
            cwd=checkout.folder,
            env={**checkout.environ, **environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def holds_lock(process: subprocess.Popen[bytes]) -> bool:
    return re.search(rf"FLOCK +ADVISORY +WRITE {process.pid} ", Path("/proc/locks").read_text()) is not None


def test_a_stack_that_is_just_starting_is_stopped_and_nothing_else(checkout: Checkout, home: Path) -> None:
    """A signal goes to the process that holds the lock, never to an id that nobody noted: 0 is the caller's own group."""
    starting = supervisor(checkout)
    until("it holds the lock", lambda: holds_lock(starting), every=0.001)
    starting.send_signal(signal.SIGSTOP)
    down = subprocess.Popen(
        ["make", "down"],
        cwd=checkout.folder,
        env={**checkout.environ, **NO_DOCKER},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with suppress(subprocess.TimeoutExpired):  # it looks for the note
        down.wait(2)
    starting.send_signal(signal.SIGCONT)
    assert "stopped" in down.communicate(timeout=60)[0] and down.returncode == 0
    assert starting.wait(60) == 0
    assert processes(checkout) == {}


@pytest.mark.parametrize("at", ["valkey-server", "catcher.py", "beat", "worker1"])
def test_a_signal_in_the_moment_of_a_start_leaves_no_process(checkout: Checkout, home: Path, tmp_path: Path, at: str) -> None:
    """Between a process' start and its note no signal ends the one who started it."""
    (tmp_path / "sitecustomize.py").write_text(SIGNAL)
    starting = supervisor(checkout, PYTHONPATH=str(tmp_path), AT=at, SENDS="SIGTERM")
    assert starting.wait(60) == 0, (home / "stack.log").read_text()
    assert processes(checkout) == {}


@pytest.mark.parametrize("command", ["up", "down"])
def test_an_id_that_another_process_has_by_now_is_left_alone(checkout: Checkout, stack: Path, command: str) -> None:
    """A process is known by its id and the moment it began, not by words of its command line."""
    noted = int(re.findall(r"\d+", (stack / "worker1.pid").read_text())[0])
    for pid in processes(checkout):
        os.kill(pid, signal.SIGKILL)
    until("all are gone", lambda: not processes(checkout), 10)
    words = ("-A app", "valkey-server", "catcher.py")
    innocent = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", *words])
    try:
        note = stack / "worker1.pid"
        note.write_text(note.read_text().replace(str(noted), str(innocent.pid), 1))
        assert checkout.make(command, *(["POOL=solo"] if command == "up" else ["VOLUMES=1"]), **NO_DOCKER).returncode == 0
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_copy_of_the_folder_ends_nothing_of_the_original(checkout: Checkout, stack: Path, tmp_path: Path) -> None:
    """A note lies in the folder that its process belongs to."""
    before = processes(checkout)
    copy = clone(tmp_path / "copy")
    shutil.copytree(checkout.folder / ".kit", copy.folder / ".kit")
    assert copy.make("down", "VOLUMES=1", **NO_DOCKER).returncode == 0
    assert copy.make("up", "POOL=solo", **NO_DOCKER).returncode == 0
    assert copy.make("down", **NO_DOCKER).returncode == 0
    assert processes(checkout) == before
    assert checkout.make("status", **NO_DOCKER).returncode == 0


def test_what_does_not_stop_is_said_and_its_data_stays(checkout: Checkout, stack: Path) -> None:
    """A command says what happened, and no data is deleted whose server may still run."""
    about = json.loads((stack / "stack.json").read_text())
    os.kill(about["pid"], signal.SIGSTOP)
    done = checkout.make("down", "VOLUMES=1", TASK_TIME_LIMIT="1", STOP_GRACE_PERIOD="2s", **NO_DOCKER)
    said = checkout.refusal(done)
    assert f"the embedded stack (process {about['pid']}) has not stopped within " in said
    assert list((stack / "valkey/appendonlydir").iterdir())
    os.kill(about["pid"], signal.SIGCONT)
    until("it stops", lambda: not processes(checkout), 60)


def test_what_a_killed_stack_left_is_ended_before_its_data_goes(checkout: Checkout, stack: Path) -> None:
    """Of a stack without its supervisor, too, no data is deleted whose server may still run."""
    os.kill(json.loads((stack / "stack.json").read_text())["pid"], signal.SIGKILL)
    done = checkout.make("down", "VOLUMES=1", **NO_DOCKER)
    assert done.returncode == 0 and "its data is deleted" in done.stdout
    assert processes(checkout) == {}
    assert not (stack / "valkey").exists()


def test_a_command_beside_another_finds_the_same_stack(checkout: Checkout, home: Path) -> None:
    """Whoever looks whether a stack runs does not look like one."""
    looks = [
        subprocess.Popen(
            [
                ".venv/bin/python",
                "-c",
                "from celery_kit.operate.stacks.embedded import state\nfor _ in range(2_000): assert state() is None",
            ],
            cwd=checkout.folder,
            env=checkout.environ,
        )
        for _ in range(2)
    ]
    assert [one.wait(60) for one in looks] == [0, 0]


def test_a_stack_that_has_no_address_yet_is_said_in_one_line(checkout: Checkout, home: Path, tmp_path: Path) -> None:
    """What a command needs of a stack that is starting is not there yet, and is no error of the program."""
    (tmp_path / "sitecustomize.py").write_text(SIGNAL)
    starting = supervisor(checkout, PYTHONPATH=str(tmp_path), AT="valkey-server", SENDS="SIGSTOP")
    until("it waits", lambda: "State:\tT" in Path(f"/proc/{starting.pid}/status").read_text())
    try:
        for command in ("send TASK=mail.send_email", "result ID=1", "status", "doctor", "dead"):
            assert "the embedded stack is just starting" in checkout.refusal(checkout.make(*command.split(), **NO_DOCKER))
    finally:
        starting.send_signal(signal.SIGCONT)
        starting.terminate()
        assert starting.wait(60) == 0
