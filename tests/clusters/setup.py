"""A cluster as its compose file starts it, and a worker of each pool beside it, each on a queue of its own, under load.

Everything has the label of the run, and is removed by that label, also on Ctrl-C.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import docker
import requests
from celery import Celery
from docker.types import Mount
from kombu.utils.uuid import uuid

from celery_kit.operate.stacks.images import image
from celery_kit.pools.table import POOLS
from testbed import deployed
from testbed.servers.contract import ADMIN, PASSWORD
from testbed.stack import SESSION, Stack
from tests.faults.ledger import Ledger
from tests.harness.containers import LABELS
from tests.harness.kit import kit
from tests.harness.waiting import until

INSIDE = Path(__file__).with_name("inside")
PROBE = Path(__file__).parents[1] / "faults/inside/fault_probe.py"
#: The seconds that each task takes.
SECONDS = 0.02
#: Tasks at once of each worker: the pools' own numbers, as far as they are small.
AT_ONCE = 4


class Cluster:
    """The stack `name`. `pools`: those of which a worker runs; `engine`: kit or plain."""

    def __init__(self, name: str, pools: tuple[str, ...] = tuple(POOLS)) -> None:
        self.pools, self.engine = pools, ""
        self.client = docker.from_env()
        self.folder = Path("/tmp") / f"{SESSION}-clusters"
        self.folder.mkdir()
        self.folder.chmod(0o777)  # the image's user is another one
        self.ledger = Ledger(self.folder / "effects")
        self.workers: dict[str, Any] = {}
        self.sent: dict[str, dict[str, float]] = {}
        self.slowest, self.errors = 0.0, list[str]()
        self.stack = Stack(name)
        self.space, self.hosts = self.stack.server.default, self.stack.server.hosts
        self.stack.services = sorted({*self.hosts, self.stack.results, "mail"})

    def __enter__(self) -> "Cluster":
        try:
            self.stack.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_workers()
        for host in self.hosts:
            with suppress(docker.errors.DockerException):
                self.stack.container(host).kill()  # a frozen one would take its whole grace
        self.stack.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Nodes

    def ask(self, path: str, method: str = "get") -> Any:
        """What the management interface of the first node that answers says. Raises RuntimeError if none does."""
        for host in self.stack.server.hosts:
            with suppress(requests.RequestException, RuntimeError):
                url = f"http://127.0.0.1:{self.stack.port(15672, host)}/api/{path}"
                answer = requests.request(method, url, auth=(ADMIN, PASSWORD), timeout=5)
                answer.raise_for_status()
                return answer.json() if answer.content else None
        raise RuntimeError("no node answers")

    def queue(self, pool: str) -> str:
        """The queue of a pool's worker."""
        return f"{self.engine}-{pool}"

    def node(self, pool: str) -> str:
        """The name of a pool's worker."""
        return f"{self.queue(pool)}@worker"

    def _started(self, pool: str, before: int) -> bool:
        return self.ledger.ready(self.node(pool)) > before

    def leaders(self) -> dict[str, str]:
        """By queue of this trial, the host of its leader."""
        found = {one["name"]: one.get("leader") or one["node"] for one in self.ask(f"queues/{self.space}")}
        return {name: self.host(found[name]) for name in map(self.queue, self.pools)}

    def host(self, node: str) -> str:
        """The host of a node: rabbit@node-2 is on broker-2."""
        return node.replace("rabbit@node", "broker")

    def connected(self) -> dict[str, list[str]]:
        """By host, the workers that are connected to it."""
        addresses = {
            str(one.attrs["NetworkSettings"]["Networks"][self.stack.network]["IPAddress"]): pool
            for pool, one in self.workers.items()
        }
        found: dict[str, set[str]] = {host: set() for host in self.stack.server.hosts}
        for one in self.ask("connections"):
            if pool := addresses.get(one["peer_host"]):
                found[self.host(one["node"])].add(pool)
        return {host: sorted(pools) for host, pools in found.items()}

    def lead(self, host: str) -> None:
        """Have a node lead the queues of all workers."""
        node = host.replace("broker", "node")
        for pool in self.pools:
            if self.leaders()[self.queue(pool)] != host:
                move = (
                    f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{self.space}">>, queue, <<"{self.queue(pool)}">>)), '
                    f"rabbit_quorum_queue:transfer_leadership(Q, 'rabbit@{node}')."
                )
                self.stack.container(host).exec_run(["rabbitmqctl", "-q", "eval", move])
        until(f"{host} leads", lambda: set(self.leaders().values()) == {host}, 60)

    def whole(self) -> None:
        """Wait until all nodes run, and each queue has all its copies."""

        def is_whole() -> bool:
            nodes = self.ask("nodes")
            queues = [one for one in self.ask(f"queues/{self.space}") if one["name"] in map(self.queue, self.pools)]
            return (
                len(nodes) == len(self.stack.server.hosts)
                and all(one.get("running") for one in nodes)
                and all(len(one.get("online", ())) == len(nodes) for one in queues)
            )

        def quietly() -> bool:
            with suppress(RuntimeError, KeyError):
                return is_whole()
            return False

        until("the cluster is whole", quietly, 120)

    def network(self, name: str) -> Any:
        return self.client.networks.get(f"{self.stack.project}_{name}")

    # Workers

    def start_workers(self, engine: str) -> None:
        """Start a worker of each pool, with the settings of a stack, or of plain Celery; wait until all consume."""
        self.stop_workers()
        self.engine = engine
        before = {pool: self.ledger.ready(self.node(pool)) for pool in self.pools}
        url = self.stack.urls(self.space, inside=True)
        if engine == "kit":
            url = self.stack.url_for("worker", url)
        for pool in self.pools:
            module = "/srv/app/tasks/fault_probe.py" if engine == "kit" else "/srv/fault_probe.py"
            command = ["python", "-m", "app.worker"]
            if engine == "plain":
                command = ["celery", "-A", "plain", "worker", "--pool", pool, "--loglevel", "INFO"]
            command += ["--hostname", self.node(pool), "-Q", self.queue(pool)]
            command += ["-c", "1" if pool == "solo" else str(AT_ONCE)]
            rights = deployed.rights()
            container = self.client.containers.create(
                image(pool),
                command,
                name=f"{self.stack.project}-{self.queue(pool)}",
                labels=LABELS,
                healthcheck={"test": ["NONE"]},
                environment={
                    "BROKER": self.stack.name,
                    "BACKEND": "redis",
                    "CELERY_BROKER_URL": url,
                    "CELERY_RESULT_BACKEND": self.results(),
                    "HEARTBEAT_FILE": "/tmp/heartbeat",
                },
                mounts=[
                    Mount("/data", str(self.folder), "bind"),
                    Mount(module, str(PROBE), "bind", read_only=True),
                    Mount("/srv/plain.py", str(INSIDE / "plain.py"), "bind", read_only=True),
                ],
                network=self.stack.network,
                **rights,
            )
            self.stack.let_out(container)
            container.start()
            container.reload()
            self.workers[pool] = container
        for pool in self.pools:
            until(f"the worker on {pool} consumes", partial(self._started, pool, before[pool]), 120)
        for one in self.workers.values():
            one.reload()

    def results(self) -> str:
        """The URL of the results server for a worker."""
        return f"redis://{self.stack.account(self.stack.results, 'worker')}@results:6379/1"

    def beside(self) -> dict[str, set[str]]:
        """Tasks of producers that a fault itself has started, by kind."""
        return {}

    def stop_workers(self) -> None:
        """Kill the workers."""
        for one in self.workers.values():
            with suppress(docker.errors.APIError):
                one.remove(force=True, v=True)
        self.workers = {}

    def ended(self) -> dict[str, str]:
        """By pool, the last words of the workers that have exited."""
        for one in self.workers.values():
            one.reload()
        return {
            pool: one.logs(tail=30).decode(errors="replace") for pool, one in self.workers.items() if one.status != "running"
        }

    # The producer

    def producer(self) -> Celery:
        """A producer's app on this machine."""
        Stack.port.cache_clear()  # a container that starts again gets other ports
        url, results = self.stack.urls(self.space), self.stack.results_url(1)
        if self.engine == "plain":
            made = Celery("plain", broker=url, backend=results, set_as_current=False)
            made.conf.update(task_acks_late=True, task_default_queue_type="quorum", task_create_missing_queue_type="quorum")
            return made
        environ = {"BROKER": self.stack.name, "CELERY_RESULT_BACKEND": results, **self.stack.addresses()}
        own: Celery = kit({**environ, "CELERY_BROKER_URL": self.stack.url_for("producer", url)})
        return own

    @contextmanager
    def load(self, a_second: float) -> Iterator[None]:
        """Send to each worker so many tasks a second, from a thread for each, during the block. A send that fails is noted."""
        self.ledger = Ledger(self.folder / "effects")
        (self.folder / "island").unlink(missing_ok=True)
        self.slowest, self.errors = 0.0, []
        self.sent = {pool: {} for pool in self.pools}
        enough, app = threading.Event(), self.producer()

        def run(pool: str) -> None:
            while not enough.wait(1 / a_second):
                task, began = uuid(), time.monotonic()
                try:
                    app.send_task("faults.effect", (SECONDS,), task_id=task, queue=self.queue(pool))
                except Exception as error:
                    self.errors.append(f"{type(error).__name__}: {error}"[:300])
                else:
                    self.sent[pool][task] = time.monotonic()
                    self.ledger.accepted.add(task)
                self.slowest = max(self.slowest, time.monotonic() - began)

        threads = [threading.Thread(target=run, args=(pool,), daemon=True) for pool in self.pools]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            enough.set()
            for thread in threads:
                thread.join(60)
            app.close()


def settled(ledger: Ledger, quiet: float) -> None:
    """Wait until every accepted task is done, or until nothing was done for `quiet` seconds."""
    last = [len(ledger.lines()), time.monotonic()]

    def is_settled() -> bool:
        if not ledger.missing():
            return True
        if len(ledger.lines()) != last[0]:
            last[:] = [len(ledger.lines()), time.monotonic()]
        return time.monotonic() - last[1] > quiet

    until("the accounts are settled", is_settled, 300)
