"""The embedded stack: Valkey, mail catcher, worker and beat as processes of this machine, without Docker.

`python -m app.local` runs it in the foreground until SIGTERM or Ctrl-C; :class:`Local` starts and stops it for the
command line. One at a time: whoever runs it holds a lock, so that a killed one leaves nothing that looks alive.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.backends import BACKENDS
from app.brokers import BROKERS
from app.brokers.embedded import HOME, STATE, server
from app.facts import Member
from app.pools import POOLS
from app.profile import stop_grace
from app.refusal import refuse
from app.schedule import TIMETABLE

ROOT = Path(__file__).resolve().parents[1]
LOG = HOME / "stack.log"
START_SECONDS = 60.0


class StopRequestedError(Exception):
    """The stack was asked to stop."""


@contextmanager
def _lock(patience: float = 0.0) -> Iterator[bool]:
    """Hold the stack's lock; gives False, and holds nothing, where another still has it after `patience` seconds."""
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "lock", "a") as file:

        def taken() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield _until(taken, patience)


def state() -> dict[str, Any] | None:
    """What the running embedded stack wrote about itself; None where none runs."""
    with _lock() as free:
        if free:
            return None
    try:
        return dict(json.loads(STATE.read_text()))
    except (OSError, ValueError):
        return {"pid": 0, "ready": False}  # it is just starting


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_leftovers() -> None:
    """End what a killed stack left behind: processes that it noted, if the id still belongs to such a process."""
    for note in HOME.glob("*.pid"):
        pid = note.read_text().strip() or "0"
        if any(word in _running_command(pid) for word in ("valkey-server", "-A app", "catcher.py")):
            print(f"ending process {pid}, left over from a stack that was killed", flush=True)
            os.kill(int(pid), signal.SIGKILL)
            _until(lambda pid=pid: not _running_command(pid), 5.0)  # type: ignore[misc]
        note.unlink()


def _running_command(pid: str) -> str:
    """The whole command line of a process, however long; empty if it ended, reaped or not."""
    shown = subprocess.run(["ps", "-ww", "-o", "stat=,command=", "-p", pid], capture_output=True, text=True, check=False).stdout
    return "" if shown.startswith("Z") else shown


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class _Processes:
    """The stack's processes by name, each with a log file and a noted process id."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: list[str], environ: Mapping[str, str]) -> Path:
        """Start one; gives the file that its heartbeat will touch."""
        beat = HOME / f"{name}.beat"
        with open(HOME / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                argv,
                cwd=ROOT,
                env={**os.environ, **environ, "HEARTBEAT_FILE": str(beat)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (HOME / f"{name}.pid").write_text(str(self.running[name].pid))
        return beat

    def died(self) -> str | None:
        return next((name for name, process in self.running.items() if process.poll() is not None), None)

    def stop(self, grace: float) -> None:
        """Stop them, the mail catcher last: tasks still use it. SIGKILL for what runs after `grace` seconds."""
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


def run(pool: str, backend: str, scale: int, owner: str) -> None:
    """Run the stack in the foreground until SIGTERM or SIGINT. `owner`: who will stop it, `up` or `demo`."""
    with _lock(patience=2.0) as mine:
        if not mine:
            refuse("an embedded stack runs already; 'make status' shows it, 'make down' stops it")
        _end_leftovers()
        for note in (STATE, *HOME.glob("*.beat*")):
            note.unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        broker, processes = server(), _Processes()
        try:
            broker.start()
            about = {"pid": os.getpid(), "owner": owner, "pool": pool, "backend": backend, "address": broker.connection_url}
            about |= {"smtp": _free_port(), "http": _free_port(), "ready": False}
            _note(about)
            beats = [processes.start(name, argv, environment(about)) for name, argv in _commands(pool, scale).items()]
            while True:
                if name := processes.died():
                    refuse(f"{name} of the embedded stack ended by itself; its log is {HOME / name}.log")
                if not about["ready"] and all(beat.exists() for beat in beats[1:]):  # the mail catcher has none
                    about["ready"] = True
                    _note(about)
                time.sleep(0.5 if about["ready"] else 0.05)
        except StopRequestedError:
            pass
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            processes.stop(grace=stop_grace())
            if broker.is_running():
                broker.stop()
            STATE.unlink(missing_ok=True)


def _stop(*_: Any) -> None:
    raise StopRequestedError


def _commands(pool: str, scale: int) -> dict[str, list[str]]:
    """The processes beside the broker, in the order of their start: name and command line."""
    from app.worker import command  # Celery's own command line takes a tenth of a command's time to import

    log = ["--loglevel", os.environ.get("LOGLEVEL") or "INFO"]
    workers = [f"worker{number}" for number in range(1, scale + 1)]
    return {
        "mail": [sys.executable, "deploy/mail/catcher.py"],
        "beat": [sys.executable, "-m", "celery", "-A", "app", "beat", *log],
        **{name: command(POOLS[pool], [*log, "--hostname", f"{name}@%h"]) for name in workers},
    }


def _note(about: dict[str, Any]) -> None:
    draft = STATE.with_suffix(".draft")
    draft.write_text(json.dumps(about))
    draft.replace(STATE)


def environment(about: Mapping[str, Any]) -> dict[str, str]:
    """What a process needs to take part in the embedded stack."""
    return {
        "BROKER": "embedded",
        "CELERY_BROKER_URL": f"{about['address']}/0",
        "CELERY_RESULT_BACKEND": BACKENDS[about["backend"]].url({}, BROKERS["embedded"]),
        "POOL": about["pool"],
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(about["smtp"]),
        "SMS_GATEWAY_URL": f"http://127.0.0.1:{about['http']}/sms",
        "CATCHER_HOST": "127.0.0.1",
        "CATCHER_SMTP_PORT": str(about["smtp"]),
        "CATCHER_HTTP_PORT": str(about["http"]),
    }


def _member(one: dict[str, Any]) -> Member:
    name, running = one["name"], bool(one["command"])
    role = name.rstrip("0123456789")
    said: dict[str, Any] = {}
    if role == "beat" and running:
        with suppress(OSError, ValueError):
            said = json.loads((HOME / f"{name}.beat{TIMETABLE}").read_text())
    node = f"{name}@{socket.gethostname()}" if role == "worker" else None
    return Member(role, f"{'running' if running else 'ended'}, process {one['pid']}", running, node, said)


class Local:
    """The embedded stack, as the command line handles it."""

    def running(self) -> bool:
        return state() is not None

    def up(self, pool: str, backend: str, scale: int, owner: str = "up") -> list[str]:
        """Start it and wait until its worker consumes. Gives lines that say where things are."""
        if about := state():
            refuse(
                f"an embedded stack runs already (pool {about.get('pool', 'unknown')}, process {about['pid']}); "
                "use it, or stop it with 'make down'"
            )
        HOME.mkdir(parents=True, exist_ok=True)
        with open(LOG, "wb") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "app.local", pool, backend, str(scale), owner],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _until(lambda: supervisor.poll() is not None or bool((state() or {}).get("ready")), START_SECONDS)
            about = state()
            if not about or not about["ready"]:
                supervisor.terminate()
                supervisor.wait()
                said = LOG.read_text(errors="replace").strip().splitlines()
                refuse(
                    said[-1].removeprefix("celery-kit: ")
                    if said
                    else f"the embedded stack was not ready within {START_SECONDS:g} s"
                )
        except BaseException:
            supervisor.terminate()
            supervisor.wait()
            raise
        return [
            f"broker   {about['address']} (Valkey, data in {HOME.relative_to(ROOT)}/)",
            f"mail     http://127.0.0.1:{about['http']}/ shows what was caught",
            f"logs     {HOME.relative_to(ROOT)}/*.log",
        ]

    def down(self, volumes: bool) -> None:
        if about := state():
            os.kill(about["pid"], signal.SIGTERM)
            _until(lambda: state() is None, stop_grace() + 30)
        if volumes:
            for path in (HOME / "valkey").glob("*"):
                subprocess.run(["rm", "-rf", str(path)], check=True)

    def python(self, *argv: str) -> int:
        """Run `python -m …` inside the stack; gives its exit code."""
        about = state() or refuse("no embedded stack runs; start it with 'make up'")
        return subprocess.run(
            [sys.executable, "-m", *argv], cwd=ROOT, env={**os.environ, **environment(about)}, check=False
        ).returncode

    def inspected(self) -> list[dict[str, Any]]:
        """A description of each of its processes: name, id, whether it runs."""
        notes = sorted(HOME.glob("*.pid")) if self.running() else []
        pids = {note.stem: note.read_text().strip() or "0" for note in notes}
        return [{"name": name, "pid": pid, "command": _running_command(pid)} for name, pid in pids.items()]

    def environment(self, _: list[dict[str, Any]]) -> dict[str, str]:
        """What a process of this machine needs to take part."""
        return environment(state() or refuse("no embedded stack runs; start it with 'make up'"))

    def members(self, inspected: list[dict[str, Any]]) -> list[Member]:
        """Its processes, as this machine sees them."""
        return [_member(one) for one in inspected]

    def logs(self, follow: bool) -> None:
        files = [str(path) for path in sorted(HOME.glob("*.log"))] or refuse("the embedded stack has no logs yet")
        subprocess.run(["tail", *(["-f"] if follow else ["-n", "100"]), *files], check=False)

    def ps(self) -> None:
        for note in sorted(HOME.glob("*.pid")) if self.running() else []:
            print(f"{note.stem:<10}process {note.read_text().strip()}")


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
