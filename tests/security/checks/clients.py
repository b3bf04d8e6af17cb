"""Results, files, commands, the supply chain, and TLS: what a client, a command or a build takes."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from redis import Redis

from celery_kit.base.target import ROOT
from tests.harness.waiting import until
from tests.security.checks.contract import KIT, AbsentError, Attempt, Check, Plant, Subject, kits_environ, run
from tests.security.test_containers import docker

TASK = "workflows.count"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def read_back(subject: Subject, task_id: str, before: str = "") -> str:
    """What a client prints that asks for a result, in a process of its own. `before`: code that it runs first."""
    kind = "from celery_kit import Kit as App" if subject.side == KIT else "from celery import Celery as App"
    code = f"""
{kind}
{before}
app = App("reader", set_as_current=False)
app.conf.update(broker_url={subject.urls["CELERY_BROKER_URL"]!r}, result_backend={subject.urls["CELERY_RESULT_BACKEND"]!r})
settings = globals().get("settings", dict())
app.conf.update(settings)
print(repr(app.AsyncResult({task_id!r}).get(timeout=5)))
"""
    done = run(sys.executable, "-c", code, cwd=ROOT)
    return done.stdout + done.stderr


def store(subject: Subject, value: bytes) -> str:
    """Put bytes in the place of a task's result. Returns the id."""
    task_id = f"stored-{uuid4().hex}"
    Redis.from_url(subject.urls["CELERY_RESULT_BACKEND"]).set(f"celery-task-meta-{task_id}", value, ex=600)
    return task_id


def pickled_result(subject: Subject) -> bool:
    """An attempt: a stored result that is a pickle runs code in who reads it."""
    path = subject.folder / uuid4().hex
    read_back(subject, store(subject, pickle.dumps({"status": "SUCCESS", "result": Touch(str(path))})), reader(subject))
    return path.exists()


def reader(subject: Subject) -> str:
    """Code that a planted client runs first."""
    return subject.urls.get("reader", "")


def named_error(subject: Subject) -> bool:
    """An attempt: a stored failure whose exception is a function of Python's has it called (CVE-2021-23727)."""
    path = subject.folder / uuid4().hex
    failure = {"exc_type": "system", "exc_module": "os", "exc_message": f"touch {path}"}
    read_back(subject, store(subject, json.dumps({"status": "FAILURE", "result": failure}).encode()), reader(subject))
    return path.exists()


def reading(code: str, name: str) -> Plant:
    """A client that runs this first."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        yield replace(subject, urls={**subject.urls, "reader": code})

    return Plant(name, made)


#: As Celery 5.2.1 did it.
FORMER = """
import celery.backends.base as base, importlib
def exception_to_python(self, exc):
    kind = getattr(importlib.import_module(exc["exc_module"]), exc["exc_type"])
    return kind(exc["exc_message"])
base.Backend.exception_to_python = exception_to_python
"""


def typed(subject: Subject, *words: str, **given: str) -> subprocess.CompletedProcess[str]:
    """A command that a user types: `make WORD NAME=value` for the kit, `celery -A proj …` in plain Celery's worker."""
    if subject.checkout is None:
        # With a terminal, as who types has one: click leaves escapes out elsewhere.
        return run("docker", "exec", "--tty", subject.service("worker").name, "celery", "-A", "proj", *words, cwd=ROOT)
    argv = ["make", "-s", words[0], *(f"{name}={value}" for name, value in given.items())]
    return run(*argv, cwd=subject.checkout.folder, environ=kits_environ(subject.checkout))


def sends(text: str) -> Attempt:
    """An attempt: arguments that no other language reads, or no worker takes, are sent, or end the command with a traceback."""

    def attempt(subject: Subject) -> str:
        done = typed(subject, *(("send",) if subject.checkout else ("call", TASK, "--args", text)), TASK=TASK, ARGS=text)
        return "traceback" if "Traceback" in done.stdout + done.stderr else "" if done.returncode else "it was sent"

    return attempt


def shows_result(value: bytes) -> Attempt:
    """An attempt: a stored result ends the command that shows it with a traceback."""

    def attempt(subject: Subject) -> str:
        task_id = store(subject, value)
        done = typed(subject, *(("result",) if subject.checkout else ("result", task_id)), ID=task_id, WAIT="2")
        return "traceback" if "Traceback" in done.stdout + done.stderr else ""

    return attempt


RED = "\x1b[31mx"
FAILED = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": [RED]}


def escapes(subject: Subject) -> bool:
    """An attempt: escapes in the error of a stored failure reach the terminal."""
    stored = {"status": "FAILURE", "result": FAILED, "children": [], "traceback": f"Traceback {RED}"}
    task_id = store(subject, json.dumps(stored).encode())
    words = ("result",) if subject.checkout else ("result", "--traceback", task_id)
    done = typed(subject, *words, ID=task_id, WAIT="2")
    return RED in done.stdout + done.stderr


def timetable(subject: Subject) -> bool:
    """An attempt: the file of beat's last runs, with a pickle in it, runs code as beat starts."""
    one, mark = subject.service("beat"), f"ran-{uuid4().hex[:8]}"
    code = f"""
import os, pickle, shelve
folder = "/data" if os.access("/data", os.W_OK) else os.getcwd()
class Touch:
    def __reduce__(self):
        return open, (folder + "/{mark}", "w")
for name in os.listdir(folder):
    if name.startswith("celerybeat-schedule") and not name.endswith(".json"):
        os.remove(folder + "/" + name)
    elif name.endswith("schedule.json"):
        open(folder + "/" + name, "wb").write(pickle.dumps({{"entries": Touch()}}))
with shelve.open(folder + "/celerybeat-schedule") as file:
    for key in ("entries", "__version__", "tz", "utc_enabled"):
        file[key] = Touch()
print(folder)
"""
    folder = docker("exec", one.name, "python", "-c", code)
    docker("restart", "--time", "5", one.name)
    with suppress(AssertionError):
        until("it ran", lambda: one.sh(f"ls {folder}/{mark} 2>/dev/null"), 20, every=1)
    found = bool(one.sh(f"ls {folder}/{mark} 2>/dev/null"))
    if found and subject.side != KIT:
        one.sh(f"rm -f {folder}/celerybeat-schedule*")
        docker("restart", "--time", "1", one.name)
    return found


def expands(name: str) -> Attempt:
    """An attempt: `$(…)` in a variable that is typed is run."""

    def attempt(subject: Subject) -> bool:
        if subject.checkout is None:
            raise AbsentError("there is no make")
        ran, folder = subject.folder / uuid4().hex, subject.checkout.folder
        run(
            "make",
            "-s",
            "urls",
            f"{name}=$(shell touch {ran});`touch {ran}`",
            cwd=folder,
            environ=kits_environ(subject.checkout),
        )
        return ran.exists()

    return attempt


@contextmanager
def expanding(subject: Subject) -> Iterator[Subject]:
    """A Makefile that expands what is typed."""
    assert subject.checkout
    folder = subject.folder / uuid4().hex
    folder.mkdir()
    names = " ".join(f"$({name})" for name in TYPED)
    (folder / "Makefile").write_text(f"urls:\n\techo {names}\n")
    yield replace(subject, checkout=replace(subject.checkout, folder=folder))


def folder_of_kit(subject: Subject) -> str:
    """An attempt: other users of the machine enter the folder of passwords."""
    if subject.checkout is None:
        raise AbsentError("there is no such folder")
    modes = {path.name: path.stat().st_mode & 0o077 for path in (subject.checkout.folder / ".kit",)}
    return " ".join(name for name, mode in modes.items() if mode)


@contextmanager
def open_folder(subject: Subject) -> Iterator[Subject]:
    """A checkout with such a folder for everybody."""
    assert subject.checkout
    folder = subject.folder / uuid4().hex
    (folder / ".kit").mkdir(parents=True, mode=0o755)
    yield replace(subject, checkout=replace(subject.checkout, folder=folder))


TYPED = ("TASK", "ARGS", "SCALE", "BROKER", "ID", "CELERY", "IMAGE")
MAKES = Plant("a Makefile that expands what is typed", expanding)
#: A client that takes pickles.
TAKES = "settings = {'result_serializer': 'pickle', 'accept_content': ['json', 'pickle'], 'result_accept_content': ['pickle']}"
ROWS = (
    Check(
        "results", "a stored pickle runs code in who reads it", pickled_result, reading(TAKES, "a client that accepts pickle")
    ),
    Check(
        "results",
        "a stored failure has a function called in who reads it",
        named_error,
        reading(FORMER, "as Celery 5.2.1 read it"),
    ),
    Check("results", "what is no JSON ends the command that shows it with a traceback", shows_result(b"x")),
    Check(
        "results",
        "what is nested 100,000 deep ends the command that shows it with a traceback",
        shows_result(b"[" * 100_000 + b"]" * 100_000),
    ),
    Check("results", "what is no table ends the command that shows it with a traceback", shows_result(b"[5]")),
    Check("results", "what is no UTF-8 ends the command that shows it with a traceback", shows_result(b"\xff\xfe")),
    Check("results", "escapes in an error reach the terminal of who has it shown", escapes),
    Check("files", "a pickle in the file of beat's last runs runs code", timetable),
    Check(
        "files",
        "other users of the machine enter the folder of passwords",
        folder_of_kit,
        Plant("a folder for everybody", open_folder),
    ),
    Check("commands", "arguments that are NaN are sent", sends("[[NaN], 1]")),
    Check(
        "commands",
        "arguments that are nested 50,000 deep are sent, or end the command with a traceback",
        sends("[" * 50_000 + "]" * 50_000),
    ),
    *(Check("commands", f"`$(…)` in {name}= is run", expands(name), MAKES) for name in TYPED),
)
