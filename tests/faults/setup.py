"""A setup: one broker, one results server, a link with faults and two workers, in containers of this run.

Everything has the label of the run, and is removed by that label, also on Ctrl-C.
"""

import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import docker
from celery import Celery
from docker.types import Mount
from kombu.utils.uuid import uuid
from redis import Redis

from celery_kit.operate.stacks.images import image, of_python, settings
from celery_kit.pools.table import Pool
from celery_kit.produce.publishing import Connection
from testbed import deployed
from testbed.servers import EVERY
from testbed.servers.contract import APP, PASSWORD, SECURE, TLS_FOLDER, secured
from testbed.stack import SESSION
from tests.faults.ledger import Ledger
from tests.harness.containers import LABELS
from tests.harness.kit import kit
from tests.harness.ports import free_port
from tests.harness.waiting import until

INSIDE = Path(__file__).with_name("inside")
CLOCK = Path(__file__).with_name("clock")

#: In production the grace is longer than the longest task. Here a task takes a few seconds at most.
GRACE = 20
#: A worker's child processes, and its maximal concurrency: the pools' defaults would make the run long or large.
CHILDREN, AT_ONCE = 4, 50


@dataclass(frozen=True)
class Pair:
    """A broker and a pool. Results are stored in Redis."""

    broker: str
    pool: Pool

    def __str__(self) -> str:
        return f"{self.broker}-{self.pool.name}"

    @property
    def at_once(self) -> int:
        return min(self.pool.concurrency or CHILDREN, AT_ONCE)


def clocked(worker: str, base: str) -> str:
    """The image of a worker whose wall clock `Setup.set_clock` can set, built from the image under test."""
    given = ("--tag", f"{worker}-clock", "--build-arg", f"WORKER={worker}", "--build-arg", f"BASE={base}")
    subprocess.run(["docker", "build", "--quiet", *given, CLOCK], check=True, stdout=subprocess.DEVNULL)
    return f"{worker}-clock"


class Setup:
    """The containers of a pair. `engine`: kit or plain. The workers are named `one` and `two`."""

    def __init__(self, pair: Pair, engine: str = "kit") -> None:
        self.pair, self.engine, self.server = pair, engine, EVERY[pair.broker]
        self.name = f"{SESSION}-{engine}-{pair}-{uuid()[:4]}"
        self.folder = Path("/tmp") / self.name
        self.folder.mkdir()
        self.folder.chmod(0o777)  # the image's user is another one
        self.ledger = Ledger(self.folder / "effects")
        self.client = docker.from_env()
        self.images = settings() | of_python()
        self.workers: dict[str, Any] = {}
        self.linked: dict[str, bool] = {}
        self.clocked: dict[str, bool] = {}
        self.host_ports: dict[int, int] = {}
        #: Exit codes of the workers that were stopped.
        self.exits: list[int] = []
        self.last_words = ""
        self._past_restarts = 0
        try:
            self._start_servers()
        except BaseException:
            self.close()
            raise

    # Containers

    def _network(self, role: str) -> Any:
        return self.client.networks.create(f"{self.name}-{role}", driver="bridge", labels=LABELS)

    def _container(self, role: str, image: str, command: Any = None, **options: Any) -> Any:
        return self.client.containers.create(
            image,
            command,
            name=f"{self.name}-{role}",
            labels=LABELS,
            healthcheck={"test": ["NONE"]},
            **options,
        )

    def _server(self, role: str, name: str, network: Any, mounts: list[Mount]) -> Any:
        server, port = EVERY[name].container, EVERY[name].port
        ports = (port, *server.ports) if role == "broker" else (port,)
        published = {f"{number}/tcp": ("127.0.0.1", free_port()) for number in ports}
        if role == "broker":
            self.host_ports = {int(inside.split("/")[0]): host for inside, (_, host) in published.items()}
        else:
            self.results_port = published[f"{port}/tcp"][1]
        variable, default = server.image
        files = server.files | ({str(TLS_FOLDER.with_name("server")): "/tls"} if SECURE else {})
        container = self._container(
            role,
            self.images.get(variable, default),
            list(server.command) or None,
            hostname=role,
            user=str(server.uid),
            environment={**server.environment, **dict.fromkeys(server.passwords, PASSWORD), "KEY": role, "SECURE": SECURE},
            ports=published,
            mounts=[*mounts, *(Mount(inside, host, "bind", read_only=True) for host, inside in files.items())],
            network=network.name,
        )
        # Its host name is its role, as in the stacks.
        network.disconnect(container)
        network.connect(container, aliases=[role])
        container.start()
        return container

    def _start_servers(self) -> None:
        self.broker_network, self.results_network = self._network("broker"), self._network("results")
        its = self.server.container
        # On a memory file system: small enough to be filled, and equally fast on every machine.
        disk = self.client.volumes.create(
            f"{self.name}-disk",
            driver_opts={"type": "tmpfs", "device": "tmpfs", "o": f"size=400m,uid={its.uid},gid={its.uid}"},
            labels=LABELS,
        )
        port = self.broker_port
        self.link_port = free_port()
        self.link = self._container(
            "link",
            self.python,
            ["python3", "-u", "/link.py", f"workers:{port}:broker:{port}", f"producer:{port + 1}:broker:{port}"],
            mounts=[
                Mount("/link.py", str(INSIDE / "link.py"), "bind", read_only=True),
                Mount("/data", str(self.folder), "bind"),
                Mount("/disk", disk.name, "volume", no_copy=True),  # holds the data of the tmpfs while the broker is stopped
            ],
            ports={f"{port + 1}/tcp": ("127.0.0.1", self.link_port)},
            network=self.broker_network.name,
        )
        self.broker_network.disconnect(self.link)
        self.broker_network.connect(self.link, aliases=["link"])
        self.link.start()
        self.broker = self._server(
            "broker", self.pair.broker, self.broker_network, [Mount(its.data, disk.name, "volume", no_copy=True)]
        )
        self.results = self._server("results", "redis", self.results_network, [])
        self.wait_for_servers()

    @property
    def python(self) -> str:
        return self.images.get("PYTHON_IMAGE", "python:3.13-slim-trixie")

    def wait_for_servers(self) -> None:
        """Wait until both servers answer."""
        url = self.url("127.0.0.1", self.host_ports[self.broker_port])

        def answers() -> bool:
            with suppress(Exception), Connection(url, connect_timeout=2) as connection:
                return bool(connection.default_channel) and bool(self._results(2).ping())
            return False

        until("the servers answer", answers, 120)

    def _results(self, timeout: float) -> Any:
        """A client of the results server. `timeout`: seconds."""
        return Redis.from_url(self.results_url("127.0.0.1", self.results_port), socket_timeout=timeout)

    def results_url(self, host: str, port: int, folder: str | Path = TLS_FOLDER) -> str:
        """The results server's URL for a client that reaches it at this host and port, and finds certificates in `folder`."""
        return secured(f"redis://{APP}:{PASSWORD}@{host}:{port}/0", folder)

    @property
    def broker_port(self) -> int:
        """The port that the broker listens on, inside its container."""
        return self.server.port

    def url(self, host: str, port: int, folder: str | Path = TLS_FOLDER) -> str:
        """The broker's URL, likewise."""
        return secured(self.server.url.format(host=host, port=port, namespace=self.server.default), folder)

    def port(self, number: int) -> int:
        """The host's port for a port of the broker."""
        return self.host_ports[number]

    def start(
        self,
        name: str,
        linked: bool = False,
        hostname: str = "",
        command: list[str] | None = None,
        clock: bool = False,
        arguments: Sequence[str] = (),
        **environ: str,
    ) -> Any:
        """Start a worker, in place of an earlier one of that name. `linked`: it reaches the broker over the link with faults.

        `clock`: `set_clock` can set its wall clock. `arguments`: its options, in place of the pair's concurrency.
        """
        if old := self.workers.get(name):
            old.reload()
            self._past_restarts += int(old.attrs["RestartCount"])
            old.remove(force=True, v=True)
        url = self.url("link" if linked else "broker", self.broker_port, "/tls")
        node = f"{hostname or name}@%h"
        module = "/srv/fault_probe.py" if self.engine == "plain" else "/srv/app/tasks/fault_probe.py"
        worker = ["python", "-m", "app.worker"]
        if self.engine == "plain":
            worker = ["celery", "-A", "plain", "worker", "--pool", self.pair.pool.name, "--loglevel", "INFO"]
        worker += ["--hostname", node, *(arguments or ("--concurrency", str(self.pair.at_once)))]
        environment = {
            "BROKER": self.pair.broker,
            "BACKEND": "redis",
            "CELERY_BROKER_URL": url,
            "CELERY_RESULT_BACKEND": self.results_url("results", 6379, "/tls"),
            "TASK_TIME_LIMIT": "60",
            "RESTORE_AFTER": str(self.server.faults.restore_after or "") if self.engine == "plain" else "",
            "TZ": "UTC",
            **environ,
        }
        worker_image = image(self.pair.pool.name)
        if clock:
            worker_image = clocked(worker_image, self.python)
            self.set_clock(name, 0)
            # As when a real clock is set, the monotonic clock is not changed. The file is read at each call.
            environment |= {
                "LD_PRELOAD": "/usr/local/lib/libfaketime.so",
                "FAKETIME_TIMESTAMP_FILE": f"/data/clock.{name}",
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
        container = self._container(
            name,
            worker_image,
            command or worker,
            hostname="worker",
            environment=environment,
            mounts=[
                Mount("/data", str(self.folder), "bind"),
                *([Mount("/tls", str(TLS_FOLDER), "bind", read_only=True)] if SECURE else []),
                Mount(module, str(INSIDE / "fault_probe.py"), "bind", read_only=True),
                Mount("/srv/plain.py", str(INSIDE / "plain.py"), "bind", read_only=True),
            ],
            restart_policy={"Name": "unless-stopped"},
            **{**deployed.rights(), "mem_limit": "500m", "memswap_limit": "500m"},
            network=self.broker_network.name,
        )
        self.results_network.connect(container)
        if not command:
            self.workers[name], self.linked[name], self.clocked[name] = container, linked, clock
        before = self.ledger.ready(f"{hostname or name}@worker")
        container.start()
        container.before = before
        return container

    def wait_for(self, name: str, hostname: str = "") -> None:
        """Wait until a worker that was just started consumes."""
        container = self.workers[name]
        node = f"{hostname or name}@worker"

        def up() -> bool:
            return bool(self.ledger.ready(node) > container.before)

        try:
            until(f"worker {name} consumes", up, 90)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{container.logs(tail=30).decode(errors='replace')}") from None

    def stop(self, name: str) -> None:
        """Stop a worker with the grace, as the engine does. Records its exit code, and where it hung."""
        container = self.workers[name]
        container.kill(signal="SIGTERM")
        with suppress(AssertionError):
            until("it has ended", lambda: not self._runs(container), GRACE - 2)
        if self._runs(container):
            with suppress(docker.errors.APIError):
                container.kill(signal="SIGUSR1")  # Celery then prints the stack of each thread
        container.stop(timeout=2)
        self.exits.append(code := int(container.wait()["StatusCode"]))
        if code:
            self.last_words += f"{name} exit {code}: {container.logs(tail=120).decode(errors='replace')[-6000:]}\n"

    def _runs(self, container: Any) -> bool:
        container.reload()
        return bool(container.status == "running")

    def words(self) -> str:
        """The last log lines of the workers, without those of tasks."""
        said = ""
        for name, container in self.workers.items():
            lines = container.logs(tail=5000).decode(errors="replace").splitlines()
            told = [line for line in lines if " succeeded in " not in line and " received" not in line]
            said += f"{name}:\n" + "\n".join(line[:300] for line in told[-12:]) + "\n"
        return said

    def beat(self, name: str = "") -> Any:
        """Start a beat that sends a task each second."""
        app = "plain" if self.engine == "plain" else "app"
        command = ["celery", "-A", app, "beat", "--schedule", f"/data/schedule{name}"]
        return self.start(f"beat{name}", command=command, TICKS="1")

    def wait_for_tick(self, moment: float) -> None:
        """Wait until a task that beat sent after `moment` was done."""
        until("beat's task is done", lambda: any(x.kind == "tick" and x.time > moment for x in self.ledger.lines()), 90)

    def ensure(self, linked: bool = False, clock: bool = False) -> None:
        """Make sure that exactly these two workers run, with or without the link, and with or without a clock to set."""
        for name in [name for name in self.workers if name not in ("one", "two")]:
            self.workers.pop(name).remove(force=True, v=True)
        started = []
        for name in ("one", "two"):
            container = self.workers.get(name)
            if container:
                container.reload()
            fits = container and container.status == "running"
            if not fits or (self.linked[name], self.clocked[name]) != (linked, clock):
                self.start(name, linked, clock=clock)
                started.append(name)
        for name in started:
            self.wait_for(name)

    def running(self) -> list[str]:
        """The names of the running workers."""
        for container in self.workers.values():
            container.reload()
        return [name for name, container in self.workers.items() if container.status == "running"]

    def restarts(self) -> int:
        """How often the engine has restarted workers that had exited by themselves."""
        for container in self.workers.values():
            container.reload()
        return self._past_restarts + sum(int(container.attrs["RestartCount"]) for container in self.workers.values())

    def set_link(self, which: str, state: str) -> None:
        (self.folder / f"link.{which}").write_text(state)

    def set_clock(self, name: str, seconds: int) -> None:
        """Set a worker's wall clock ahead of this machine's."""
        draft = self.folder / f"clock.{name}.draft"
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self.folder / f"clock.{name}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Freeze the workers' processes."""
        held = [container for container in self.workers.values() if container.status == "running"]
        try:
            for container in held:
                until("it stands still", partial(self._paused, container))
            yield
        finally:
            for container in held:
                with suppress(docker.errors.APIError):  # it was not frozen
                    container.unpause()

    def _paused(self, container: Any) -> bool:
        with suppress(docker.errors.APIError):  # the kernel cannot freeze a process during some system calls
            container.pause()
            return True
        return False

    @contextmanager
    def without(self, network: Any) -> Iterator[None]:
        """Disconnect the workers from a network: no packet passes."""
        held = [container for container in self.workers.values() if container.status == "running"]
        for container in held:
            network.disconnect(container, force=True)
        try:
            yield
        finally:
            for container in held:
                network.connect(container)

    # The producer

    def app(self) -> Celery:
        """A producer's app: with the kit's settings, or plain Celery with two addresses."""
        environ = {
            "BROKER": self.pair.broker,
            "BACKEND": "redis",
            "POOL": self.pair.pool.name,
            "CELERY_BROKER_URL": self.url("127.0.0.1", self.link_port),
            "CELERY_RESULT_BACKEND": self.results_url("127.0.0.1", self.results_port),
        }
        if self.engine == "plain":
            return Celery(
                "plain", broker=environ["CELERY_BROKER_URL"], backend=environ["CELERY_RESULT_BACKEND"], set_as_current=False
            )
        made: Celery = kit(environ)
        return made

    def send(self, app: Celery, task: str = "faults.effect", *args: Any) -> None:
        """Send a task, and record its id as accepted if that raised no error."""
        task_id = uuid()
        try:
            app.send_task(task, args, task_id=task_id)
        except Exception:
            self.ledger.refused += 1
        else:
            self.ledger.accepted.add(task_id)

    def send_effect(self, app: Celery, seconds: float) -> None:
        """Send a task that takes `seconds`. Every second one has `@once`."""
        sent = len(self.ledger.accepted) + self.ledger.refused
        self.send(app, ("faults.effect", "faults.effect_once")[sent % 2], seconds)

    @contextmanager
    def load(self, seconds: float, a_second: float) -> Iterator[None]:
        """Send tasks of `seconds` each from a thread during the block."""
        enough = threading.Event()
        app = self.app()

        def run() -> None:
            while not enough.wait(1 / a_second):
                self.send_effect(app, seconds)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join(30)

    def without_result(self, tasks: set[str]) -> set[str]:
        """Those of the tasks that do not have the state SUCCESS on the results server."""
        names = sorted(tasks)
        with self._results(10) as redis:
            metas = redis.mget([f"celery-task-meta-{name}" for name in names]) if names else []
        return {name for name, meta in zip(names, metas, strict=True) if b'"SUCCESS"' not in (meta or b"")}

    def new_ledger(self) -> None:
        lines = self.ledger
        self.ledger = Ledger(self.folder / "effects")
        self.ledger._lines, self.ledger._read = lines._lines, lines._read

    def close(self) -> None:
        """Remove everything."""
        found = list(self.client.containers.list(all=True, filters={"name": f"^/{self.name}-"}))
        for container in found:
            with suppress(docker.errors.APIError):
                container.remove(force=True, v=True)
        for network in self.client.networks.list(filters={"name": f"^{self.name}-"}):
            with suppress(docker.errors.APIError):
                network.remove()
        with suppress(docker.errors.APIError):
            self.client.volumes.get(f"{self.name}-disk").remove(force=True)
        shutil.rmtree(self.folder, ignore_errors=True)
