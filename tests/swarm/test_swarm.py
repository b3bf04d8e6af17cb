"""`make stack` on a swarm of three nodes, a group for each pool: a node is killed, images are replaced under load, or broken.

The nodes are engines in containers of this machine (tests/swarm/nodes.py), so one kernel runs all of them.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import image, settings
from celery_kit.pools.table import POOLS
from testbed.servers import SERVERS
from tests.deploy.conftest import Checkout, clone
from tests.harness.containers import clean, require_engine
from tests.harness.waiting import until
from tests.swarm.load import TABLE, WORKERS, Account, Load
from tests.swarm.nodes import Nodes

#: The pool that gets the broken image.
BROKEN = "gevent"
#: The images of a stack, and what is added to them.
PUSHED = (*POOLS, "mail")
PROBE = ROOT / "tests/faults/inside/fault_probe.py"
ADDED = "COPY fault_probe.py /srv/app/tasks/\nLABEL version=${VERSION}\n"
#: A worker that never consumes. The image's own check is asked more often, so that the test takes seconds in place of minutes.
SLEEPS = 'CMD ["sleep", "3600"]\nHEALTHCHECK --interval=2s --timeout=10s --start-period=2s --retries=2 CMD ["healthy"]\n'
#: Tasks that the broker has confirmed before a node is killed.
MANY = 100
#: Seconds until tasks flow again.
FLOW = 20.0
pytestmark = pytest.mark.timeout(1500)


@dataclass
class Swarm:
    """A stack on three nodes."""

    nodes: Nodes
    checkout: Checkout
    broker: str
    name: str
    load: Load

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        own = {"DOCKER_HOST": self.nodes.host(), **images_of(self.nodes), **environ}
        return self.checkout.make("stack", f"BROKER={self.broker}", f"STACK={self.name}", *words, **own)

    def pins(self, version: str) -> str:
        return f"pins-{version}.json"


def images_of(nodes: Nodes) -> dict[str, str]:
    """The servers' images, in the registry."""
    names = sorted({server.container.image for server in SERVERS.values()})
    return {name: nodes.push(settings().get(name, default), name.lower().partition("_")[0]) for name, default in names}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    require_engine()
    made = Nodes()
    try:
        yield made
    finally:
        made.close()
        clean()


@pytest.fixture(scope="module")
def checkout(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A clone with a group for each pool, and in the registry two versions of its images, with a task that notes what it does.

    As `make push` would pin them, but made of the images that are there, by adding that task.
    """
    checkout = clone(tmp_path_factory.mktemp("checkout") / "celery-kit")
    (checkout.folder / "app/workers.toml").write_text(TABLE)
    for version in ("1", "2"):
        images = {name: nodes.add(image(name), f"shop:{name}-{version}", ADDED, PROBE, VERSION=version) for name in PUSHED}
        (checkout.folder / f"pins-{version}.json").write_text(json.dumps({"images": images}))
    return checkout


@pytest.fixture(scope="module", params=SERVERS)
def swarm(nodes: Nodes, checkout: Checkout, request: pytest.FixtureRequest) -> Iterator[Swarm]:
    name = f"shop-{request.param}"
    nodes.share(name)
    file = checkout.folder / ".kit/stacks" / f"{name}.json"
    swarm = Swarm(nodes, checkout, request.param, name, Load(nodes, name, request.param, file))
    done = swarm.make(f"PINS={swarm.pins('1')}")
    assert done.returncode == 0 and f"the stack {name} is healthy" in done.stdout
    try:
        yield swarm
    finally:
        swarm.make("DOWN=1")


def test_each_queue_runs_on_its_group_and_the_servers_on_one_node(swarm: Swarm) -> None:
    """Each pool's tasks ran on workers of its group, two of each, on the nodes without the servers; beat is there once."""
    with swarm.load.flowing():
        moment = time.monotonic()
        until("all workers work", lambda: swarm.load.all_work(moment, set()), 60)
    accounts = swarm.load.accounts("none", moment, set())
    assert all((one.lost, one.twice) == (0, 0) for one in accounts)
    pools, lines = swarm.load.pools(), swarm.load.ledger.lines()
    ran = {(pools[line.task], line.node.partition("@")[0]) for line in lines if line.event == "begin" and line.task in pools}
    assert ran == {(pool, pool) for pool in POOLS}
    shown = swarm.nodes.docker(
        "one", "stack", "ps", swarm.name, "--format", "{{.Name}} {{.Node}}", "-f", "desired-state=running"
    )
    where = [line.split() for line in shown.splitlines()]
    assert sorted(node for name, node in where if "_worker-" in name) == ["three"] * len(POOLS) + ["two"] * len(POOLS)
    assert {node for name, node in where if "_worker-" not in name} == {"one"}
    assert sum("_beat." in name for name, _ in where) == 1


def test_a_node_is_killed(swarm: Swarm) -> None:
    """No task is lost, those that it held run elsewhere, and its workers start on the other one."""
    with swarm.load.flowing():
        until("all workers work", lambda: swarm.load.all_work(swarm.load.begun, set()), 60)
        until("tasks flow", lambda: len(swarm.load.pools()) > MANY, 60)
        gone = swarm.nodes.hostnames("three")
        swarm.nodes.kill("three")
        moment = time.monotonic()
        until("as many workers work as the table says", lambda: swarm.load.all_work(moment, gone), 180)
    accounts = swarm.load.accounts("node killed", moment, gone)
    swarm.nodes.revive("three")
    assert [one.lost for one in accounts] == [0] * len(POOLS)
    assert flow(accounts)


def test_images_are_replaced_under_load(swarm: Swarm) -> None:
    """One worker after the other, each after its successor is healthy."""
    with swarm.load.flowing():
        moment = time.monotonic()
        done = swarm.make(f"PINS={swarm.pins('2')}")
        after = time.monotonic()
        until("the new workers work", lambda: swarm.load.all_work(after, set()), 60)
    accounts = swarm.load.accounts("rolling update", moment, set())
    assert done.returncode == 0
    pinned = json.loads((swarm.checkout.folder / swarm.pins("2")).read_text())["images"]
    for pool in POOLS:
        service = swarm.nodes.services(swarm.name)[f"worker-{pool}"]
        assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == pinned[pool]
    assert [(one.lost, one.twice) for one in accounts] == [(0, 0)] * len(POOLS)
    assert flow(accounts)


def test_a_broken_image_is_taken_back(swarm: Swarm) -> None:
    """Its container runs, and its health check fails. The command says so, and the former image runs on."""
    pins = swarm.checkout.folder / "pins-broken.json"
    found = json.loads((swarm.checkout.folder / swarm.pins("2")).read_text())
    good = found["images"][BROKEN]
    found["images"][BROKEN] = swarm.nodes.add(image(BROKEN), f"shop:{BROKEN}-broken", SLEEPS)
    pins.write_text(json.dumps(found))
    with swarm.load.flowing():
        moment = time.monotonic()
        done = swarm.make("PINS=pins-broken.json")
    accounts = swarm.load.accounts("broken image", moment, set())
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("celery-kit: ")]
    assert len(said) == 1 and f"{swarm.name}_worker-{BROKEN}: the new one did not become healthy" in said[0]
    assert "the former one runs again" in said[0]
    service = swarm.nodes.services(swarm.name)[f"worker-{BROKEN}"]
    assert service["UpdateStatus"]["State"] == "rollback_completed"
    assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == good
    assert [(one.lost, one.twice) for one in accounts] == [(0, 0)] * len(POOLS)
    assert flow(accounts)


def flow(accounts: list[Account]) -> bool:
    """Whether tasks of each pool flowed, those that were held began again, and as many workers worked as the table says."""
    late = [one for one in accounts if one.longest > FLOW or (one.back or 0) > FLOW]
    return not late and all(one.full is not None for one in accounts) and WORKERS > 1
