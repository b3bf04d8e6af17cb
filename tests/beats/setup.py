"""The processes of a trial on this machine: beats, each behind a link of its own, and a worker that notes what was sent."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.observe.beat import TIMETABLE, timetable_in
from tests.harness.ports import free_ports
from tests.harness.waiting import until
from tests.harness.workers import Process

#: The library that gives a process another wall clock, and what it is made of.
SOURCE, CLOCK = Path(__file__).with_name("clock.c"), ROOT / ".kit/clock.so"


def make_clock() -> None:
    """Compile the library. Refuses a machine without a C compiler."""
    try:
        draft = CLOCK.with_name(f"clock.{os.getpid()}.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", draft, SOURCE], check=True)
        draft.replace(CLOCK)
    except FileNotFoundError:
        refuse(
            "the trials need a C compiler, cc, for a clock that can be set; on Debian and Ubuntu: apt-get install gcc libc6-dev"
        )


class Beat:
    """One beat, which can be killed, frozen, cut off from the broker, and given another time of day."""

    def __init__(self, name: str, folder: Path, environ: Mapping[str, str], scheduler: tuple[str, ...] = ()) -> None:
        self.name, self.folder, self.starts, self.scheduler = name, folder, 0, scheduler
        self.heartbeat = folder / f"{name}.heartbeat"
        self.environ = {
            **environ,
            "HEARTBEAT_FILE": str(self.heartbeat),
            "SCHEDULE": str(folder / f"{name}.json"),
            "LD_PRELOAD": str(CLOCK),
            "CLOCK": str(folder / f"{name}.clock"),
        }
        self.set_clock(0)
        self.link("open")
        self.start()

    def start(self) -> None:
        """Start it, as who watches over it does."""
        self.starts += 1
        argv = ["-m", "celery", "-A", "tests.beats.work", "beat", "--loglevel", "INFO", *self.scheduler]
        self.process = Process(argv, self.folder / f"{self.name}.{self.starts}.log", self.environ)

    @property
    def leads(self) -> bool:
        """Whether it says that it leads."""
        file = Path(f"{self.heartbeat}{TIMETABLE}")
        return bool(timetable_in(file.read_text())[1]) if file.exists() else False

    def set_clock(self, seconds: int) -> None:
        """Set its wall clock ahead of this machine's, or back."""
        draft = self.folder / f"{self.name}.clock.draft"
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self.folder / f"{self.name}.clock")

    def link(self, state: str) -> None:
        """`open`, or `dark`: nothing passes, nothing is refused."""
        (self.folder / f"link.{self.name}").write_text(state)

    def kill(self) -> None:
        self.process.kill()

    def freeze(self) -> None:
        os.killpg(self.process.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.process.pid, signal.SIGCONT)


class Setup:
    """Use it in a `with`. `url`: the broker's for beats, `workers`: for the worker and the look at the end."""

    def __init__(self, url: str, workers: str, number: int, scheduler: tuple[str, ...] = (), **environ: str) -> None:
        self.workers, self.processes = workers, list[Process]()
        self.temporary = tempfile.TemporaryDirectory(prefix="celery-kit-beats-")
        self.folder = Path(self.temporary.name)
        self.notes = self.folder / "notes"
        self.notes.touch()
        common = {"NOTES": str(self.notes), "CELERY_RESULT_BACKEND": "rpc://", **environ}
        names, ports = [f"beat{n + 1}" for n in range(number)], free_ports(number)
        to = urlsplit(url)
        words = [f"{name}:{port}:{to.hostname}:{to.port}" for name, port in zip(names, ports, strict=True)]
        links = {"LINKS": str(self.folder), "LINKS_HOST": "127.0.0.1"}
        self.beats: list[Beat] = []
        try:
            self._start([str(ROOT / "tests/faults/inside/link.py"), *words], "link", links)
            node = ("-n", f"{self.folder.name}@%h", "-l", "INFO")
            worker = ["-m", "celery", "-A", "tests.beats.work", "worker", "-P", "solo", *node]
            self._start(worker, "worker", {**common, "CELERY_BROKER_URL": workers})
            until("the worker consumes", self.processes[-1].consumes, 120)
            for name, port in zip(names, ports, strict=True):
                mine = url.replace(f"{to.hostname}:{to.port}", f"127.0.0.1:{port}")
                own = {**common, "CELERY_BROKER_URL": mine, "BEATS": str(number)}
                self.beats.append(Beat(name, self.folder, own, scheduler))
        except BaseException:
            self.close()
            raise

    def _start(self, argv: list[str], name: str, environ: Mapping[str, str]) -> None:
        self.processes.append(Process(argv, self.folder / f"{name}.log", environ))

    def __enter__(self) -> "Setup":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all processes."""
        for process in [*self.processes, *(beat.process for beat in self.beats)]:
            process.kill()
        self.temporary.cleanup()

    def leader(self) -> Beat | None:
        """A beat that says that it leads, if one does."""
        return next((beat for beat in self.beats if beat.leads), None)

    def ran(self) -> list[tuple[str, float, str]]:
        """Each run of an entry: its name, when it was (seconds since 1970), and its message's id."""
        rows = (line.split("\t") for line in self.notes.read_text().splitlines())
        return [(name, float(at), task) for name, at, task in rows]

    def noted(self) -> dict[str, int]:
        """How often each entry was sent, as the broker has noted. The beats must have exited."""
        code = (
            "import json; from kombu.utils.imports import symbol_by_name; from tests.beats.work import app\n"
            "from celery_kit.brokers import room\n"
            "lead = symbol_by_name(room(app.conf.broker_url).lead)(app)\n"
            "while not lead.hold(): pass\n"
            "print(json.dumps({name: run['total_run_count'] for name, run in lead.runs().items()})); lead.leave()"
        )
        environ = {**os.environ, "CELERY_BROKER_URL": self.workers, "CELERY_RESULT_BACKEND": "rpc://", "NOTES": ""}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)
        assert not done.returncode, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
