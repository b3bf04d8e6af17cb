"""The embedded stack: Valkey, mail catcher, worker and beat as processes of this machine, without Docker.

`python -m celery_kit.operate.stacks.embedded` runs it in the foreground until SIGTERM or Ctrl-C; :class:`Local` starts and
stops it for the command line. Only one can run at a time. It holds a lock, so that a killed stack does not look as if
it were running. Each process has a pid file with its start time and folder. No other process is sent a signal.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Unpack

from celery_kit.base.choices import data_dir, stop_grace
from celery_kit.base.facts import Member
from celery_kit.base.refusals import Absent, refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.brokers.embedded import DATA, HOME, NOWHERE, PIDFILE, STATE, server
from celery_kit.observe.beat import TIMETABLE, timetable_in
from celery_kit.operate.stacks import pidfile
from celery_kit.operate.stacks.codebase import About, Codebase, Started, about_here, environ_of, folder_of, python_of
from celery_kit.operate.stacks.docker import Facts, RunOptions
from celery_kit.operate.stacks.ports import mail_url
from celery_kit.pools.table import POOLS
from celery_kit.results import BACKENDS

try:
    import fcntl
except ImportError:
    fcntl = Absent("the embedded stack")  # type: ignore[assignment]

LOG, MAIL_PASSWORD = HOME / "stack.log", HOME / "mail.password"
START_SECONDS = 60.0
#: Seconds within which the holder of the lock must have written its pid file, which it does first.
NOTE_SECONDS = 5.0
TAIL_LINES = 100
#: The addresses that an app gets if it is loaded before the broker starts.
NOT_YET = {"BROKER": "embedded", "CELERY_BROKER_URL": NOWHERE, "CELERY_RESULT_BACKEND": NOWHERE}


@contextmanager
def _lock(kind: int, patience: float = 0.0) -> Iterator[bool]:
    """Hold the stack's lock: LOCK_EX, or LOCK_SH to test it. Yields False, without the lock, after `patience` seconds."""
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "lock", "a") as file:

        def taken() -> bool:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield _until(taken, patience)


def state() -> Facts | None:
    """The facts that the running embedded stack has written about itself. None if none runs.

    It may have no address yet, and not be ready. Refuses if the process that holds the lock is not known.
    """
    found: list[Facts | None] = []

    def looked() -> bool:
        with _lock(fcntl.LOCK_SH) as free:
            about = None if free else pidfile.running(STATE)
        found[:] = [about] if free or about else []
        return bool(found)

    if not _until(looked, NOTE_SECONDS):
        refuse(
            f"an embedded stack holds {HOME / 'lock'} and has written no pid file: it was started in another container, "
            "or by an older version of the kit; stop it there, or by the ids in 'ps -ef'"
        )
    return found[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _leftovers() -> list[int]:
    """The processes that a killed stack left behind."""
    found = [about["pid"] for note in HOME.glob("*.pid") if (about := pidfile.running(note))]
    with suppress(OSError, ValueError):  # a server that was still starting: its own pid file, and its working folder
        pid = int(PIDFILE.read_text())
        found += [pid] if Path(f"/proc/{pid}/cwd").samefile(DATA) else []
    return found


def _end_leftovers() -> None:
    """Kill those processes. Refuses if one does not exit, because it may still use the data."""
    for pid in _leftovers():
        print(f"killing process {pid}, left over from a stack that was killed", flush=True)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not _until(lambda: not _leftovers(), NOTE_SECONDS):
        refuse(
            f"process {_leftovers()[0]}, left over from an embedded stack that was killed, does not exit; nothing was changed"
        )
    for note in HOME.glob("*.pid"):
        note.unlink()


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class _Processes:
    """The stack's processes by name, each with a log file and a pid file."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: list[str], environ: Mapping[str, str], folder: Path) -> Path:
        """Start a process in a folder. Returns the file that its heartbeat will touch."""
        beat = HOME / f"{name}.beat"
        with open(HOME / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                argv,
                cwd=folder,
                env={**os.environ, **environ, "HEARTBEAT_FILE": str(beat)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        pidfile.write(HOME / f"{name}.pid", self.running[name].pid)
        return beat

    def died(self) -> str | None:
        """The name of a process that has exited; None if all are running."""
        return next((name for name, process in self.running.items() if process.poll() is not None), None)

    def stop(self, grace: float) -> None:
        """Stop them, the mail catcher last, because tasks use it. Kills those that have not exited after `grace` seconds."""
        first, *rest = self.running or [""]
        for names in (rest, [first]):
            mine = [self.running[name] for name in names if name]
            for process in mine:
                process.terminate()
            for process in mine:
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for name in names:
                (HOME / f"{name}.pid").unlink(missing_ok=True)


def run(pool: str, backend: str, scale: int, owner: str, codebase: Codebase | None) -> None:
    """Run the stack in the foreground until SIGTERM or SIGINT. `owner`: who will stop it, `up` or `demo`.

    A signal is only recorded, because it must not interrupt between a process' start and the writing of its pid file.
    """
    asked: list[int] = []
    here, there = socket.socketpair()
    there.setblocking(False)
    signal.set_wakeup_fd(there.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    with _lock(fcntl.LOCK_EX, patience=2.0) as mine:
        if not mine:
            refuse("an embedded stack runs already; 'make status' shows it, 'make down' stops it")
        about: Facts = {"owner": owner, "pool": pool, "backend": backend, "ready": False}
        about |= {"queues": os.environ.get("CELERY_WORKER_QUEUES", "")}
        about |= {"codebase": codebase.noted()} if codebase else {}
        pidfile.write(STATE, os.getpid(), **about)
        broker, processes, beats = server(), _Processes(), list[Path]()
        try:
            _end_leftovers()
            for file in HOME.glob("*.beat*"):
                file.unlink()
            broker.start()
            pidfile.write(HOME / "valkey.pid", int(PIDFILE.read_text()))
            about |= {"address": broker.connection_url, "smtp": _free_port(), "http": _free_port()}
            pidfile.write(STATE, os.getpid(), **about)
            for name, argv in _commands(pool, scale, codebase).items():
                environ = environment(about) | ({"PYTHONPATH": str(ROOT)} if name == "mail" else environ_of(codebase))
                beats += [] if asked else [processes.start(name, argv, environ, folder_of(codebase))]
            while not asked:
                if died := processes.died():
                    refuse(f"{died} of the embedded stack exited by itself; its log is {HOME / died}.log")
                if not about["ready"] and all(beat.exists() for beat in beats[1:]):  # the mail catcher has no heartbeat
                    about["ready"] = True
                    pidfile.write(STATE, os.getpid(), **about)
                select.select([here], [], [], 0.5 if about["ready"] else 0.05)
        finally:
            processes.stop(grace=stop_grace())
            if broker.is_running():
                broker.stop()
            (HOME / "valkey.pid").unlink(missing_ok=True)
            STATE.unlink(missing_ok=True)


def _commands(pool: str, scale: int, codebase: Codebase | None) -> dict[str, list[str]]:
    """Name and command line of each process except for the broker, in the order of their start."""
    from celery_kit.worker.start import APP, command  # imported here, because it is slow: a tenth of a command's time

    log = ["--loglevel", os.environ.get("LOGLEVEL") or "INFO"]
    data_dir().mkdir(parents=True, exist_ok=True)
    workers = [f"worker{number}" for number in range(1, scale + 1)]
    python, schedule = python_of(codebase), str(data_dir() / "celerybeat-schedule.json")
    return {
        "mail": [sys.executable, str(ROOT / "deploy/mail/catcher.py")],
        "beat": [python, "-m", "celery", "-A", APP, "beat", *log, "--schedule", schedule],
        **{name: command(POOLS[pool], [*log, "--hostname", f"{name}@%h"], python=python) for name in workers},
    }


def environment(about: Facts) -> dict[str, str]:
    """The environment of a process of the embedded stack."""
    if "address" not in about:
        refuse(f"the embedded stack is just starting (process {about['pid']}); try again in a moment")
    return {
        "BROKER": "embedded",
        "CELERY_BROKER_URL": f"{about['address']}/0",
        "CELERY_RESULT_BACKEND": BACKENDS[about["backend"]].url({}, BROKERS["embedded"]),
        "POOL": about["pool"],
        "CELERY_WORKER_QUEUES": about["queues"],
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(about["smtp"]),
        "SMS_GATEWAY_URL": f"http://127.0.0.1:{about['http']}/sms",
        "CATCHER_HOST": "127.0.0.1",
        "CATCHER_SMTP_PORT": str(about["smtp"]),
        "CATCHER_HTTP_PORT": str(about["http"]),
        "CATCHER_PASSWORD_FILE": str(MAIL_PASSWORD),
    }


def _member(one: Facts) -> Member:
    name, running = one["name"], one["running"]
    role = name.rstrip("0123456789")
    said: Facts = {}
    if role == "beat" and running:
        with suppress(OSError, ValueError):
            said = timetable_in((HOME / f"{name}.beat{TIMETABLE}").read_text())
    node = f"{name}@{socket.gethostname()}" if role == "worker" else None
    return Member(role, f"{'running' if running else 'exited'}, process {one['pid']}", running, node, said)


class Local:
    """The embedded stack, for the command line."""

    def running(self) -> bool:
        """Whether it is running, ready or not."""
        return state() is not None

    def up(self, pool: str, backend: str, scale: int, codebase: Codebase | None = None, owner: str = "up") -> Started:
        """Start it, and wait until its worker consumes. Refuses if that fails, or if one is already running."""
        if other := state():
            where = f"pool {other['pool']}, process {other['pid']}"
            refuse(f"an embedded stack runs already ({where}); use it, or stop it with 'make down'")
        HOME.mkdir(parents=True, exist_ok=True)
        said = about_here(codebase, {**NOT_YET, "BACKEND": backend, "POOL": pool}) if codebase else About()
        note = [json.dumps(codebase.noted())] if codebase else []
        with open(LOG, "wb") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "celery_kit.operate.stacks.embedded", pool, backend, str(scale), owner, *note],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            about = Facts()

            def settled() -> bool:
                about.update(found if (found := state()) and found["pid"] == supervisor.pid else {})
                return about.get("ready", False) or supervisor.poll() is not None

            if not _until(settled, START_SECONDS):
                refuse(
                    f"the embedded stack was not ready within {START_SECONDS:g} s; its logs are {HOME.relative_to(ROOT)}/*.log"
                )
            if supervisor.poll() is not None:
                last = LOG.read_text(errors="replace").strip().splitlines() or ["the embedded stack was stopped as it started"]
                refuse(last[-1].removeprefix("celery-kit: "))
        except BaseException:
            supervisor.terminate()
            supervisor.wait()
            raise
        places = [
            f"broker   {about['address']} (Valkey, data in {HOME.relative_to(ROOT)}/)",
            f"mail     http://127.0.0.1:{about['http']}/ shows what was caught (user and password: make urls)",
            f"logs     {HOME.relative_to(ROOT)}/*.log",
        ]
        if codebase:
            places += [f"code     {codebase.source}, as it is there", f"python   {codebase.python()}"]
        return Started(places, said)

    def exists(self) -> bool:
        """Whether there is anything to stop, including processes that a killed stack left behind."""
        return self.running() or bool(_leftovers())

    def data(self) -> list[str]:
        """The folder of its data, if there is any."""
        return [str(DATA.relative_to(ROOT))] if DATA.exists() else []

    def down(self, volumes: bool) -> str:
        """Stop it, and processes that a killed one left behind. Returns a description of what was done. Refuses if it fails.

        The lock is held while its data is deleted, so that no server uses it.
        """
        there, patience = self.exists(), stop_grace() + 15
        if about := state():
            with suppress(ProcessLookupError):
                os.kill(about["pid"], signal.SIGTERM)
            if not _until(lambda: not pidfile.running(STATE), patience):
                refuse(f"the embedded stack (process {about['pid']}) has not stopped within {patience} s: {LOG} says more")
        with _lock(fcntl.LOCK_EX, NOTE_SECONDS) as mine:
            if not mine:
                refuse("an embedded stack has been started again meanwhile; its data stays")
            _end_leftovers()
            if volumes and DATA.exists():
                shutil.rmtree(DATA)
        return f"embedded stack: {'stopped' if there else 'did not run'}; its data {'is deleted' if volumes else 'stays'}"

    def python(self, _: str, *argv: str, **options: Unpack[RunOptions]) -> subprocess.CompletedProcess[str]:
        """Run `python -m …` inside the stack, which has one user; `options` are those of subprocess.run."""
        about = state() or refuse("no embedded stack runs; start it with 'make up'")
        codebase = self.codebase([])
        environ = {**os.environ, **environment(about), **environ_of(codebase)}
        words = [python_of(codebase), "-m", *argv]
        return subprocess.run(words, cwd=folder_of(codebase), env=environ, text=True, check=False, **options)

    def codebase(self, _: list[Facts]) -> Codebase | None:
        """The codebase that it runs, as given to `up`. None: this repository's own app."""
        note = (state() or {}).get("codebase")
        return Codebase.from_note(note) if note else None

    def inspected(self) -> list[Facts]:
        """A description of each of its processes: name, id, whether it runs."""
        notes = sorted(HOME.glob("*.pid")) if self.running() else []
        return [
            {"name": note.stem, "pid": about["pid"], "running": bool(pidfile.running(note))}
            for note in notes
            if (about := pidfile.read(note))
        ]

    def environment(self, _: list[Facts], __: str) -> dict[str, str]:
        """The environment of a process of this machine that takes part."""
        return environment(state() or refuse("no embedded stack runs; start it with 'make up'"))

    def passwords(self, _: list[Facts]) -> dict[str, str]:
        """What a person needs to log in: the mail catcher's address, with its password."""
        return {"MAIL_URL": mail_url((state() or {})["http"], MAIL_PASSWORD.read_text())}

    def seen(self, _: list[Facts]) -> Callable[[str], str]:
        """A function that translates a server's address in the stack into its address on this machine."""
        return str

    def members(self, inspected: list[Facts]) -> list[Member]:
        """Its processes."""
        return [_member(one) for one in inspected]

    def logs(self, follow: bool) -> None:
        """Print the last lines of all logs; with `follow`, go on until Ctrl-C."""
        files = sorted(HOME.glob("*.log")) or refuse("the embedded stack has no logs yet")
        ends = dict.fromkeys(files, 0)
        while True:
            for file in files:
                with open(file, "rb") as log:
                    log.seek(ends[file])
                    lines = deque(log, TAIL_LINES if not ends[file] else None)
                    ends[file] = log.tell()
                if lines:
                    print(f"==> {file.relative_to(ROOT)} <==\n{b''.join(lines).decode(errors='replace')}", flush=True)
            if not follow:
                return
            time.sleep(0.5)

    def ps(self) -> None:
        """Print its processes."""
        for one in self.inspected():
            print(f"{one['name']:<10}process {one['pid']}{'' if one['running'] else ', exited'}")


if __name__ == "__main__":
    noted = Codebase.from_note(json.loads(sys.argv[5])) if sys.argv[5:] else None
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], noted)
