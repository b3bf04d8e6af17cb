"""The embedded stack: Valkey, mail catcher, worker and beat as processes of this machine, without Docker.

`python -m celery_kit.operate.stacks.embedded` runs it in the foreground until SIGTERM or Ctrl-C. For the command line,
celery_kit/operate/stacks/local.py starts and stops it. Only one can run at a time. It holds a lock, so that a killed stack does
not look as if it were running. Each process has a pid file with its start time and folder. No other process is sent a signal.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from celery_kit.base import times
from celery_kit.base.choices import beats as number_of_beats
from celery_kit.base.choices import data_dir, task_time_limit
from celery_kit.base.refusals import Absent, refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.brokers.embedded import DATA, HOME, PIDFILE, STATE, server
from celery_kit.operate.groups import Group, longest, queues_of
from celery_kit.operate.stacks import pidfile
from celery_kit.operate.stacks.codebase import Codebase, environ_of, folder_of, python_of
from celery_kit.operate.stacks.docker import Facts
from celery_kit.pools.table import POOLS
from celery_kit.results import BACKENDS

try:
    import fcntl
except ImportError:
    fcntl = Absent("the embedded stack")  # type: ignore[assignment]

LOG, MAIL_PASSWORD = HOME / "stack.log", HOME / "mail.password"
#: Seconds within which the holder of the lock must have written its pid file, which it does first.
NOTE_SECONDS = 5.0


@contextmanager
def lock(kind: int, patience: float = 0.0) -> Iterator[bool]:
    """Hold the stack's lock: LOCK_EX, or LOCK_SH to test it. Yields False, without the lock, after `patience` seconds."""
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "lock", "a") as file:

        def taken() -> bool:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield until(taken, patience)


def state() -> Facts | None:
    """The facts that the running embedded stack has written about itself. None if none runs.

    It may have no address yet, and not be ready. Refuses if the process that holds the lock is not known.
    """
    found: list[Facts | None] = []

    def looked() -> bool:
        with lock(fcntl.LOCK_SH) as free:
            about = None if free else pidfile.running(STATE)
        found[:] = [about] if free or about else []
        return bool(found)

    if not until(looked, NOTE_SECONDS):
        refuse(
            f"an embedded stack holds {HOME / 'lock'} and has written no pid file: it was started in another container, "
            "or by an older version of the kit; stop it there, or by the ids in 'ps -ef'"
        )
    return found[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leftovers() -> list[int]:
    """The processes that a killed stack left behind."""
    found = [about["pid"] for note in HOME.glob("*.pid") if (about := pidfile.running(note))]
    with suppress(OSError, ValueError):  # a server that was still starting: its own pid file, and its working folder
        pid = int(PIDFILE.read_text())
        found += [pid] if Path(f"/proc/{pid}/cwd").samefile(DATA) else []
    return found


def end_leftovers() -> None:
    """Kill those processes. Refuses if one does not exit, because it may still use the data."""
    for pid in leftovers():
        print(f"killing process {pid}, left over from a stack that was killed", flush=True)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not until(lambda: not leftovers(), NOTE_SECONDS):
        refuse(
            f"process {leftovers()[0]}, left over from an embedded stack that was killed, does not exit; nothing was changed"
        )
    for note in HOME.glob("*.pid"):
        note.unlink()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition becomes true within some seconds. Polls it."""
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


def run(groups: Sequence[Group], backend: str, owner: str, codebase: Codebase | None) -> None:
    """Run the stack in the foreground until SIGTERM or SIGINT. `owner`: who will stop it, `up` or `demo`.

    A signal is only recorded, because it must not interrupt between a process' start and the writing of its pid file.
    """
    asked: list[int] = []
    here, there = socket.socketpair()
    there.setblocking(False)
    signal.set_wakeup_fd(there.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    with lock(fcntl.LOCK_EX, patience=2.0) as mine:
        if not mine:
            refuse("an embedded stack runs already; 'make status' shows it, 'make down' stops it")
        grace = times.seconds(times.STOP_GRACE_PERIOD, longest(groups, task_time_limit()), os.environ)
        about: Facts = {"owner": owner, "pool": groups[0].pool, "backend": backend, "ready": False}
        about |= {"queues": ",".join(queues_of(groups)) or os.environ.get("CELERY_WORKER_QUEUES", "")}
        if groups[0].name:  # their time limits are not in the environment of who stops them
            about |= {"groups": [one.noted() for one in groups], "grace": grace}
        about |= {"codebase": codebase.noted()} if codebase else {}
        about |= {"queue_version": version} if (version := os.environ.get("QUEUE_VERSION")) else {}
        pidfile.write(STATE, os.getpid(), **about)
        broker, processes, beats = server(), _Processes(), list[Path]()
        started, several = dict[str, tuple[list[str], Mapping[str, str], Path]](), number_of_beats() > 1
        try:
            end_leftovers()
            for file in HOME.glob("*.beat*"):
                file.unlink()
            broker.start()
            pidfile.write(HOME / "valkey.pid", int(PIDFILE.read_text()))
            about |= {"address": broker.connection_url, "smtp": _free_port(), "http": _free_port()}
            pidfile.write(STATE, os.getpid(), **about)
            for name, (argv, own) in _commands(groups, codebase).items():
                environ = environment(about) | ({"PYTHONPATH": str(ROOT)} if name == "mail" else environ_of(codebase)) | own
                started[name] = (argv, environ, folder_of(codebase))
                beats += [] if asked else [processes.start(name, *started[name])]
            while not asked:
                if (died := processes.died()) and several and about["ready"] and died.startswith("beat"):
                    processes.start(died, *started[died])  # another one leads meanwhile
                elif died:
                    refuse(f"{died} of the embedded stack exited by itself; its log is {HOME / died}.log")
                if not about["ready"] and all(beat.exists() for beat in beats[1:]):  # the mail catcher has no heartbeat
                    about["ready"] = True
                    pidfile.write(STATE, os.getpid(), **about)
                select.select([here], [], [], 0.5 if about["ready"] else 0.05)
        finally:
            processes.stop(grace)
            if broker.is_running():
                broker.stop()
            (HOME / "valkey.pid").unlink(missing_ok=True)
            STATE.unlink(missing_ok=True)


def _commands(groups: Sequence[Group], codebase: Codebase | None) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Command line, and variables of its own, of each process except for the broker, by name, in the order of their start.

    A worker is called `worker1`; in a group with a name, `worker-mail-1`.
    """
    from celery_kit.worker.start import APP, command  # imported here, because it is slow: a tenth of a command's time

    log = ["--loglevel", os.environ.get("LOGLEVEL") or "INFO"]
    data_dir().mkdir(parents=True, exist_ok=True)
    python, schedule = python_of(codebase), str(data_dir() / "celerybeat-schedule.json")
    workers = {
        f"{group.service}{'-' if group.name else ''}{number}": group
        for group in groups
        for number in range(1, group.scale[0] + 1)
    }
    of_beat = {name: value for name, value in groups[0].environ().items() if name == "QUEUE_VERSION"}
    return {
        "mail": ([sys.executable, str(ROOT / "deploy/mail/catcher.py")], {}),
        **{
            f"beat{number if number > 1 else ''}": (
                [python, "-m", "celery", "-A", APP, "beat", *log, "--schedule", schedule],
                of_beat,
            )
            for number in range(1, number_of_beats() + 1)
        },
        **{
            name: (command(POOLS[one.pool], [*log, "--hostname", f"{node_of(name)}@%h"], python=python), one.environ())
            for name, one in workers.items()
        },
    }


def node_of(name: str) -> str:
    """The name of a worker, before the host's, by that of its process: `mail-1` of `worker-mail-1`."""
    return name.removeprefix("worker-")


def environment(about: Facts) -> dict[str, str]:
    """The environment of a process of the embedded stack."""
    if "address" not in about:
        refuse(f"the embedded stack is just starting (process {about['pid']}); try again in a moment")
    versioned = {"QUEUE_VERSION": version} if (version := about.get("queue_version")) else {}
    return versioned | {
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


if __name__ == "__main__":
    chosen_pool, chosen_backend, workers, who, *notes = sys.argv[1:]
    given = json.loads(notes[0]) if notes else {}
    alone = Group(pool=chosen_pool, scale=(int(workers), int(workers)))
    run(
        list(map(Group.from_note, given.get("groups", ()))) or [alone],
        chosen_backend,
        who,
        Codebase.from_note(given["codebase"]) if given.get("codebase") else None,
    )
