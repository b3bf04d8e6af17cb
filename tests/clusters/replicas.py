"""A primary of Redis with its replicas, as a cluster of the trials; and a cut that divides it from them, with producers."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from docker.types import Mount
from redis import Redis

from celery_kit.brokers.redis.sentinel import MASTER
from celery_kit.operate.stacks.images import image
from celery_kit.pools.table import POOLS
from testbed import deployed
from testbed.servers.contract import ADMIN, PASSWORD
from tests.clusters.setup import INSIDE, Cluster
from tests.harness.containers import LABELS
from tests.harness.waiting import until


class Replicas(Cluster):
    """All clients are connected to the primary, which the sentinels know."""

    def __init__(self, name: str, pools: tuple[str, ...] = tuple(POOLS)) -> None:
        super().__init__(name, pools)
        self.space, self.hosts = self.stack.server.default, self.stack.server.nodes
        self.stack.services = sorted({*self.stack.server.hosts, *self.hosts, "mail"})

    def _client(self, port: int, host: str) -> Any:
        account: dict[str, Any] = {"username": ADMIN, "password": PASSWORD}
        published = int(self.stack.run("port", host, str(port)).rpartition(":")[2])  # another one after each start
        return Redis(port=published, socket_timeout=5, **account)

    def primary(self) -> str:
        """The host that all sentinels call the primary. Raises RuntimeError if they do not agree."""
        said = {self._client(26379, host).sentinel_get_master_addr_by_name(MASTER)[0] for host in self.stack.server.hosts}
        if len(said) != 1:
            raise RuntimeError(f"the sentinels do not agree: {said}")
        name = said.pop()
        return name.decode() if isinstance(name, bytes) else str(name)

    def connected(self) -> dict[str, list[str]]:
        """By host, the workers that are connected to it."""
        primary = self.primary()
        there = {one["addr"].rpartition(":")[0] for one in self._client(6379, primary).client_list()}
        pools = (
            pool
            for pool, one in self.workers.items()
            if one.attrs["NetworkSettings"]["Networks"][self.stack.network]["IPAddress"] in there
        )
        return {primary: sorted(pools)}

    def lead(self, host: str) -> None:
        """It does: only the primary has connections."""
        assert self.primary() == host

    def whole(self) -> None:
        """Wait until the primary has two replicas that have what it has."""

        def is_whole() -> bool:
            with suppress(Exception):  # of a server that does not answer yet
                found = self._client(6379, self.primary()).info("replication")
                slaves = [found[f"slave{number}"] for number in range(2)]
                return found["role"] == "master" and all(one["state"] == "online" and one["lag"] <= 1 for one in slaves)
            return False

        until("the cluster is whole", is_whole, 120)

    def results(self) -> str:
        """The URL of the results server for a worker."""
        return self.stack.url_for("worker", self.stack.urls("1", inside=True))

    # The smaller side of a cut

    def divide(self, host: str) -> Callable[[], Any]:
        """Leave the primary and a sentinel on a network of their own, with two producers: one waits for a replica.

        Returns what ends it.
        """
        island = self.client.networks.create(f"{self.stack.project}-island", labels=LABELS)
        inside = self.network("inside")
        alone = {name: self.stack.container(name) for name in (host, self.stack.server.hosts[0])}
        aliases = {name: one.attrs["NetworkSettings"]["Networks"][inside.name]["Aliases"] for name, one in alone.items()}
        for name, one in alone.items():
            island.connect(one, aliases=aliases[name])
        senders = [self._sender(replicas, island.name) for replicas in (0, 1)]
        for one in alone.values():
            inside.disconnect(one, force=True)

        def end() -> None:
            for one in senders:
                one.remove(force=True)
            for name, one in alone.items():
                inside.connect(one, aliases=aliases[name])
                island.disconnect(one, force=True)
            island.remove()

        return end

    def _sender(self, replicas: int, network: str) -> Any:
        """Start a producer (inside/sender.py). Its tasks go to the first pool's worker."""
        url = self.stack.url_for("producer", self.stack.urls(self.space, inside=True))
        made = self.client.containers.create(
            image(self.pools[0]),
            ["python", "/srv/sender.py"],
            labels=LABELS,
            healthcheck={"test": ["NONE"]},
            environment={
                "BROKER": self.stack.name,
                "CELERY_BROKER_URL": url,
                "REPLICAS": replicas,
                "QUEUE": self.queue(self.pools[0]),
            },
            mounts=[
                Mount("/data", str(self.folder), "bind"),
                Mount("/srv/sender.py", str(INSIDE / "sender.py"), "bind", read_only=True),
            ],
            network=network,
            **deployed.rights(),
        )
        made.start()
        until("it sends", lambda: self.beside()[str(replicas)], 60)
        return made

    def beside(self) -> dict[str, set[str]]:
        """By how many replicas a producer waited for, the tasks that were accepted from it."""
        file = self.folder / "island"
        found: dict[str, set[str]] = {"0": set(), "1": set()}
        for line in file.read_text().splitlines() if file.exists() else ():
            replicas, _, task = line.partition(" ")
            found[replicas].add(task)
        return found
