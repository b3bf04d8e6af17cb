"""What the matrix runs on: each broker once, as its compose file starts it, and worker containers beside it.

The servers are shared by every process of the test session (`servers`); a combination's workers belong to the one process
that runs its cells. Each combination has a namespace of its own on its broker.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import docker
from celery import Celery
from filelock import FileLock
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from celery_kit.base.choices import ENGINES
from celery_kit.base.refusals import choose
from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import image
from testbed import deployed
from testbed.servers.contract import SECURE, TLS_FOLDER, secured
from testbed.stack import SESSION, Stack
from tests.harness.certificates import certificate
from tests.harness.combinations import COMBINATIONS, Combination
from tests.harness.containers import LABELS
from tests.harness.containers import clean as clean_containers
from tests.harness.kit import kit
from tests.harness.waiting import until

testcontainers_config.ryuk_disabled = True  # the reaper is an image that a closed network cannot pull
FOLDER = Path("/tmp") / SESSION
PROBES = Path(__file__).with_name("probes")
#: The engine that the workers and the producer run on.
ENGINE = choose("ENGINE", os.environ.get("ENGINE") or ENGINES[0], ENGINES)
#: As deploy/compose/app.yaml mounts them; without SECURE, an empty folder.
CERTIFICATES = (str(TLS_FOLDER if SECURE else ROOT / "deploy/compose/without-tls/client"), "/tls", "ro")
#: SIGNED=1: every process signs. The folder of the keys, as this machine and the workers see it.
SIGNED = choose("SIGNED", os.environ.get("SIGNED") or "0", ("0", "1")) == "1"
KEYS, MOUNTED = FOLDER / "keys", Path("/keys")
ROLES: dict[str, dict[str, str]] = {
    # What a user starts. Every test may use it, none may disturb it.
    "main": {},
    # For tests that disturb or end their worker: it consumes the queue `spare` alone.
    "spare": {"OPTIONS": "-Q spare"},
    # One task at a time, and no message beyond it, on either engine: what waits behind another, and in which order.
    "single": {"OPTIONS": "-Q single -c 1 --prefetch-multiplier 1"},
    # Two queues, and events of its tasks.
    "watched": {"OPTIONS": "-Q watched,watched.too -E"},
    # These start with the first test that asks for them.
    "codecs": {"OPTIONS": "-Q codecs -c 1", "ACCEPT_CONTENT": "json,yaml,msgpack", "RESULT_COMPRESSION": "zstd"},
    # Its signs of life may be as old as the kit allows at least, so that tests need not wait for the half minute of a stack.
    "probed": {"OPTIONS": "-Q probed -c 1", "HEARTBEAT_SECONDS": "5"},
    # Signed messages alone; the test that starts it makes the keys.
    "signed": {
        "OPTIONS": "-Q signed -c 1",
        "SECURITY_KEY": "/data/keys/worker.key",
        "SECURITY_CERTIFICATE": "/data/keys/trusted/worker.pem",
        "SECURITY_CERT_STORE": "/data/keys/trusted",
    },
}


@cache
def stack(name: str) -> Stack:
    return Stack(name)


def servers() -> None:
    """Start the brokers of all chosen combinations, unless another process of this session did."""
    FOLDER.mkdir(exist_ok=True)
    with FileLock(FOLDER / "lock"):
        done = FOLDER / "servers.json"
        if done.exists():
            return
        key, made = certificate("all", 86_400, "ed25519")
        (KEYS / "trusted").mkdir(parents=True)
        (KEYS / "key").write_bytes(key)
        (KEYS / "trusted" / "all.pem").write_bytes(made)
        stacks = [stack(name) for name in dict.fromkeys(one.broker.name for one in COMBINATIONS)]
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(Stack.start, stacks))
        for number, combination in enumerate(COMBINATIONS):
            its_stack = stack(combination.broker.name)
            (FOLDER / f"{combination}.namespace").write_text(its_stack.server.namespace(number % 10, its_stack.port))
        done.write_text(json.dumps([*(one.server.version(one.port) for one in stacks), _python()]))


def signing(folder: Path) -> dict[str, str]:
    """The environment of a process that signs, and sees the keys in `folder`; empty without SIGNED."""
    names = {"SECURITY_KEY": "key", "SECURITY_CERTIFICATE": "trusted/all.pem", "SECURITY_CERT_STORE": "trusted"}
    return {name: str(folder / file) for name, file in names.items()} if SIGNED else {}


def _python() -> str:
    """What the interpreter of the first combination's image says of itself; the others are built on the same base."""
    said = docker.from_env().containers.run(image(COMBINATIONS[0].pool.name), ["python", "-V"], remove=True)
    return f"{said.decode().strip()} in the workers"


def versions() -> list[str]:
    """What the session's servers say of themselves, and the workers' Python."""
    done = FOLDER / "servers.json"
    return list(json.loads(done.read_text())) if done.exists() else []


def clean() -> None:
    """Take down all that this session started, whichever process did."""
    if not FOLDER.exists():
        return
    clean_containers()
    for name in dict.fromkeys(one.broker.name for one in COMBINATIONS):
        stack(name).stop()
    shutil.rmtree(FOLDER, ignore_errors=True)


@dataclass
class Worker:
    """A worker's container, and the file that its heartbeat touches while it consumes: cheaper to ask than the engine."""

    container: DockerContainer
    beat: Path
    asked: float = 0.0

    @property
    def docker(self) -> Any:
        return self.container.get_wrapped_container()

    def runs(self, trust: float) -> bool:
        """Whether it does, as the engine said at most `trust` seconds ago."""
        if time.monotonic() - self.asked > trust:
            self.docker.reload()
            self.asked = time.monotonic()
        return str(self.docker.status) == "running"

    def consumes(self) -> bool:
        if self.beat.exists():
            return True
        assert self.runs(1), f"the worker ended:\n{self.logs()}"
        return False

    def ready(self) -> "Worker":
        until("the worker consumes", self.consumes, 120)
        return self

    def exit_code(self, seconds: float = 60) -> int:
        """Wait for its end; gives its exit code."""
        return int(self.docker.wait(timeout=seconds)["StatusCode"])

    def logs(self) -> str:
        return b"".join(self.container.get_logs()).decode(errors="replace")


@dataclass
class Running:
    """A combination that runs: its workers, and what a producer on the host needs."""

    combination: Combination
    workers: dict[str, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stack = stack(self.combination.broker.name)
        self.server = self.stack.server
        self.namespace = (FOLDER / f"{self.combination}.namespace").read_text()
        self.data = FOLDER / str(self.combination)
        self.data.mkdir()
        self.data.chmod(0o777)  # the image's user is not this one
        self.environ = {
            "BROKER": self.combination.broker.name,
            "BACKEND": self.combination.backend.name,
            "POOL": self.combination.pool.name,
            "ENGINE": ENGINE,
            "CELERY_BROKER_URL": self.stack.urls(self.namespace),
            "ACCEPT_CONTENT": "json",
            **self.stack.addresses(),
            **signing(KEYS),
        }
        if self.combination.backend.has_server:
            self.environ["CELERY_RESULT_BACKEND"] = self.stack.results_url(1)
        #: The same for a producer; `environ` is an operator's.
        self.producers = {
            name: self.stack.url_for("producer", url, "" if "BROKER" in name else self.stack.results)
            for name, url in self.environ.items()
            if name.startswith("CELERY_")
        }

    def start(self, role: str, **environ: str) -> Worker:
        """Start a worker container of a role (:data:`ROLES`); does not wait until it consumes."""
        url = self.stack.url_for("worker", self.stack.urls(self.namespace, inside=True))
        account = self.stack.account(self.stack.results, "worker")
        user, secret = map(unquote, account.split(":"))
        beat = self.data / f"heartbeat.{role}"
        beat.unlink(missing_ok=True)
        given = {**signing(MOUNTED), **ROLES.get(role, {}), "HEARTBEAT_FILE": f"/data/{beat.name}", **environ}
        options = given.pop("OPTIONS", "").split()
        if not self.combination.backend.claims:  # @once needs a store then
            stored = secured(f"redis://{account}@results:6379/1", "/tls")
            if self.stack.server.nodes:
                stored = self.stack.url_for("worker", self.stack.urls("1", inside=True))
            given.setdefault("ONCE_URL", stored)
        rights = deployed.rights()
        folders = rights.pop("tmpfs")  # which this client has an attribute for
        container = (
            DockerContainer(image(self.combination.pool.name))
            .with_envs(
                **{"BROKER": self.combination.broker.name, "BACKEND": self.combination.backend.name},
                **{
                    "CELERY_BROKER_URL": url,
                    "RESULTS_PASSWORD": f"{secret}\n{user}",
                    "ENGINE": ENGINE,
                    "REPORT_MEGABYTES": "1",
                    **given,
                },
                SECURE=SECURE,
            )
            .with_volume_mapping(str(self.data), "/data", "rw")
            .with_volume_mapping(*CERTIFICATES)
            .with_volume_mapping(str(KEYS), str(MOUNTED), "ro")
            .with_kwargs(network=self.stack.network, labels=LABELS, healthcheck={"test": ["NONE"]}, **rights)
            .with_command(["python", "-m", "app.worker", "--hostname", f"{role}@%h", *options])
        )
        container.tmpfs |= folders
        for probe in PROBES.glob("*.py"):
            container.with_volume_mapping(str(probe), f"/srv/app/tasks/{probe.name}", "ro")
        container.start()
        self.stack.let_out(container.get_wrapped_container())
        self.workers[role] = Worker(container, beat)
        return self.workers[role]

    def worker(self, role: str, trust: float = 0) -> Worker:
        """The worker of a role, consuming; started anew if a test ended it. `trust`: how old, in seconds, a look may be."""
        worker = self.workers.get(role)
        if not worker or not worker.runs(trust):
            worker = self.start(role)
        return worker.ready()

    @contextmanager
    def beside(self, role: str, **environ: str) -> Iterator[Worker]:
        """A further worker for one test. `environ` may hold OPTIONS, for `celery worker`."""
        worker = self.start(role, **environ)
        try:
            yield worker.ready()
        except BaseException as error:
            error.add_note(f"{role} said:\n{worker.logs()[-3000:]}")
            raise
        finally:
            worker.docker.remove(force=True, v=True)
            del self.workers[role]

    def app(self, **environ: str) -> Celery:
        """A Celery app like that of another process: same code, this combination's settings, changed by `environ`.

        It sends and reads results as a producer. What else a test does is an operator's: consume, read dead letters, control.
        """
        made: Celery = kit({**self.environ, **self.producers, **environ}, str(self.combination))
        made.conf.update(broker_read_url=environ.get("CELERY_BROKER_URL") or self.environ["CELERY_BROKER_URL"])
        operator = self.operator(**environ)
        vars(made)["control"] = operator.control
        kind: Any = type(made.amqp.queues)

        class Declared(kind):  # type: ignore[misc]
            """A test may send to a queue before a worker has declared it, which no producer may."""

            def __setitem__(self, name: str, queue: Any) -> None:
                super().__setitem__(name, queue)
                with operator.connection_for_write() as connection:
                    self[name](connection.default_channel).declare()

        made.amqp.queues.__class__ = Declared
        return made

    def operator(self, **environ: str) -> Celery:
        """An app that may do all that the app's processes may."""
        made: Celery = kit({**self.environ, **environ}, f"{self.combination} operator")
        return made

    def python(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """`python -m …` on the host, as a producer of this combination."""
        environ = {**os.environ, **self.environ}
        return subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)

    def said(self, app: Celery) -> str:
        """What its workers hold now, and the last that they logged: for a cell that failed."""
        inspect = app.control.inspect(timeout=2)
        try:
            held = {name: getattr(inspect, name)() for name in ("active", "reserved", "scheduled")}
        except Exception as error:  # of a broker that does not answer: the cell's report is made all the same
            held = {"not asked": str(error)}
        parts = [f"{name}: {json.dumps(answer, default=str)}" for name, answer in held.items()]
        parts += [f"{role} logged:\n{worker.logs()[-20_000:]}" for role, worker in self.workers.items()]
        return "\n\n".join(parts)

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.docker.remove(force=True, v=True)
