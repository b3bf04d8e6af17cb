"""The embedded stack for the command line: it starts and stops celery_kit/operate/stacks/embedded.py, and looks at it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Unpack

from celery_kit.base.choices import stop_grace
from celery_kit.base.facts import Member
from celery_kit.base.refusals import Absent, refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers.embedded import DATA, HOME, NOWHERE, STATE
from celery_kit.observe.beat import TIMETABLE, timetable_in
from celery_kit.operate.groups import Group, role_of
from celery_kit.operate.stacks import pidfile
from celery_kit.operate.stacks.codebase import About, Codebase, Started, about_here, environ_of, folder_of, python_of
from celery_kit.operate.stacks.docker import Facts, RunOptions
from celery_kit.operate.stacks.embedded import (
    LOG,
    MAIL_PASSWORD,
    NOTE_SECONDS,
    end_leftovers,
    environment,
    leftovers,
    lock,
    node_of,
    state,
    until,
)
from celery_kit.operate.stacks.ports import mail_url

try:
    import fcntl
except ImportError:
    fcntl = Absent("the embedded stack")  # type: ignore[assignment]

START_SECONDS = 60.0
TAIL_LINES = 100
#: The addresses that an app gets if it is loaded before the broker starts.
NOT_YET = {"BROKER": "embedded", "CELERY_BROKER_URL": NOWHERE, "CELERY_RESULT_BACKEND": NOWHERE}


def _member(one: Facts) -> Member:
    name, running = one["name"], one["running"]
    role = role_of(name.rstrip("0123456789"))
    said, leads = timetable_in("")
    if role == "beat" and running:
        with suppress(OSError, ValueError):
            said, leads = timetable_in((HOME / f"{name}.beat{TIMETABLE}").read_text())
    node = f"{node_of(name)}@{socket.gethostname()}" if role == "worker" else None
    group = node_of(name).rpartition("-")[0] if node else ""
    return Member(role, f"{'running' if running else 'exited'}, process {one['pid']}", running, node, said, group, leads)


class Local:
    """The embedded stack, for the command line."""

    def running(self) -> bool:
        """Whether it is running, ready or not."""
        return state() is not None

    def up(self, groups: Sequence[Group], backend: str, codebase: Codebase | None = None, owner: str = "up") -> Started:
        """Start it, and wait until its workers consume. Refuses if that fails, or if one is already running."""
        if other := state():
            where = f"pool {other['pool']}, process {other['pid']}"
            refuse(f"an embedded stack runs already ({where}); use it, or stop it with 'make down'")
        HOME.mkdir(parents=True, exist_ok=True)
        first, grouped = groups[0], bool(groups[0].name)
        # The settings of app/ find out themselves that no broker runs yet.
        urls = NOT_YET if codebase else {**NOT_YET, "CELERY_BROKER_URL": "", "CELERY_RESULT_BACKEND": ""}
        environ = {**urls, "BACKEND": backend, "POOL": first.pool}
        said = about_here(codebase, environ, *["grouped"] * grouped) if codebase or grouped else About()
        note = {"codebase": codebase.noted() if codebase else None, "groups": [one.noted() for one in groups if grouped]}
        words = [first.pool, backend, str(first.scale[0]), owner, json.dumps(note)]
        with open(LOG, "wb") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "celery_kit.operate.stacks.embedded", *words],
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

            if not until(settled, START_SECONDS):
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
        return self.running() or bool(leftovers())

    def data(self) -> list[str]:
        """The folder of its data, if there is any."""
        return [str(DATA.relative_to(ROOT))] if DATA.exists() else []

    def down(self, volumes: bool) -> str:
        """Stop it, and processes that a killed one left behind. Returns a description of what was done. Refuses if it fails.

        The lock is held while its data is deleted, so that no server uses it.
        """
        there = self.exists()
        if about := state():
            patience = about.get("grace", stop_grace()) + 15
            with suppress(ProcessLookupError):
                os.kill(about["pid"], signal.SIGTERM)
            if not until(lambda: not pidfile.running(STATE), patience):
                refuse(f"the embedded stack (process {about['pid']}) has not stopped within {patience} s: {LOG} says more")
        with lock(fcntl.LOCK_EX, NOTE_SECONDS) as mine:
            if not mine:
                refuse("an embedded stack has been started again meanwhile; its data stays")
            end_leftovers()
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

    def groups(self, _: list[Facts]) -> list[Group]:
        """The worker groups that it runs, as given to `up`, by name. Empty without a table of groups."""
        return sorted(map(Group.from_note, (state() or {}).get("groups", ())), key=lambda one: one.name)

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

    def logs(self, follow: bool, group: Group | None = None) -> None:
        """Print the last lines of all logs, or of a group's workers; with `follow`, go on until Ctrl-C."""
        # Only digits follow the name: another group's may begin with it.
        mine = re.compile(rf"{group.service}-\d+" if group else ".*")
        files = sorted(file for file in HOME.glob("*.log") if mine.fullmatch(file.stem)) or refuse(
            "the embedded stack has no logs yet"
        )
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
        found = self.inspected()
        width = max([9, *(len(one["name"]) for one in found)]) + 1
        for one in found:
            print(f"{one['name']:<{width}}process {one['pid']}{'' if one['running'] else ', exited'}")
