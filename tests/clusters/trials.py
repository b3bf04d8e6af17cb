"""One trial: the node that leads the queues is lost under load, and comes back; what became of each task, by its ledger."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

from tests.clusters.replicas import Replicas
from tests.clusters.setup import Cluster, settled
from tests.harness.waiting import until

#: Tasks that are sent to each worker in a second; seconds before the fault, while it lasts, and once the cluster is whole.
STEADY, BEFORE, LASTS, AFTER = 10.0, 20.0, 25.0, 20.0
#: The seconds at the end of the trial, and as many before the fault, over which rates are taken.
RATED = 10.0
#: Seconds within which each worker is to take tasks again.
SOON = {"rabbitmq-cluster": 10.0, "redis-sentinel": 15.0}
#: Seconds without any progress after which a task counts as lost.
QUIET = 30.0


@dataclass(frozen=True)
class Fault:
    """`begin(cluster, host)`: makes it, and returns what ends it."""

    what: str
    begin: Callable[[Cluster, str], Callable[[], Any]]
    #: Only of nodes with a network of their own; only of a primary with replicas.
    between: bool = False
    divides: bool = False

    def fits(self, cluster: Cluster) -> bool:
        """Whether the cluster can have it."""
        return not (self.between if isinstance(cluster, Replicas) else self.divides)


def _killed(cluster: Cluster, host: str) -> Callable[[], Any]:
    node = cluster.stack.container(host)
    node.kill()
    return lambda: node.start()  # its attributes are of this moment


def _frozen(cluster: Cluster, host: str) -> Callable[[], Any]:
    node = cluster.stack.container(host)
    node.pause()
    return lambda: node.unpause()


def _without(*names: str) -> Callable[[Cluster, str], Callable[[], Any]]:
    def begin(cluster: Cluster, host: str) -> Callable[[], Any]:
        node, cut = cluster.stack.container(host), []
        for name in names:
            if f"{cluster.stack.project}_{name}" not in node.attrs["NetworkSettings"]["Networks"]:
                continue  # these nodes have no such network
            network = cluster.network(name)
            aliases = node.attrs["NetworkSettings"]["Networks"][network.name]["Aliases"]
            network.disconnect(node, force=True)
            cut.append((network, aliases))

        def end() -> None:
            for network, aliases in cut:
                network.connect(node, aliases=aliases)

        return end

    return begin


def _divided(cluster: Cluster, host: str) -> Callable[[], Any]:
    assert isinstance(cluster, Replicas)
    return cluster.divide(host)


FAULTS: dict[str, Fault] = {
    "killed": Fault("SIGKILL of its container, which starts again afterwards", _killed),
    "frozen": Fault("its container is paused: connections stay open, and nothing answers", _frozen),
    "nodes_cut": Fault(
        "cut from the other nodes; its clients are on the smaller side with it", _without("cluster"), between=True
    ),
    "clients_cut": Fault("cut from its clients; it goes on as a member, and leads", _without("inside"), between=True),
    "cut": Fault("cut from the other nodes and from its clients", _without("cluster", "inside")),
    "divided": Fault("cut from them with one sentinel and two producers, which go on to send to it", _divided, divides=True),
}


@dataclass
class OfPool:
    """`accepted`, `lost`, `twice`: numbers of tasks. `paused`: the longest time from the fault on in which its worker began no
    task, in seconds. `ratio`: tasks/s at the end, divided by those before the fault.
    """

    accepted: int = 0
    lost: int = 0
    twice: int = 0
    paused: float = 0.0
    ratio: float = 0.0


@dataclass
class Outcome:
    """`connected`: workers whose connection was to the lost node. `ended`: workers that exited. `refused`: sends that raised.
    `slowest`: the longest that a send took, in seconds. `whole`: seconds from the fault's end until the cluster was whole.
    """

    fault: str
    engine: str
    host: str = ""
    connected: list[str] = field(default_factory=list)
    pools: dict[str, OfPool] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    refused: int = 0
    slowest: float = 0.0
    whole: float | None = None
    error: str = ""
    #: On the smaller side of a cut, by how many replicas a producer waited for: tasks that were accepted, and of these lost.
    beside: dict[str, tuple[int, int]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


def trial(cluster: Cluster, name: str) -> Outcome:
    """Run a trial. An exception is recorded in the outcome's `error`, never raised."""
    outcome = Outcome(name, cluster.engine)
    try:
        _run(cluster, FAULTS[name], outcome)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"[:2000]
    return outcome


def _run(cluster: Cluster, fault: Fault, outcome: Outcome) -> None:
    cluster.whole()
    until("all connections are counted", lambda: {*chain(*cluster.connected().values())} == {*cluster.pools}, 60)
    connected = cluster.connected()
    outcome.host = max(connected, key=lambda host: len(connected[host]))
    outcome.connected = connected[outcome.host]
    cluster.lead(outcome.host)
    with cluster.load(STEADY):
        time.sleep(BEFORE)  # what the fault's effect is compared with
        began = time.monotonic()
        end = fault.begin(cluster, outcome.host)
        try:
            time.sleep(LASTS)  # how long the fault lasts
        finally:
            end()
        healed = time.monotonic()
        with suppress(AssertionError):
            cluster.whole()
            outcome.whole = round(time.monotonic() - healed, 1)
        time.sleep(AFTER)  # the rate after the fault is measured over this time
        ended = time.monotonic()
    beside = cluster.beside()
    cluster.ledger.accepted |= beside.get("1", set())
    settled(cluster.ledger, QUIET)
    done = {line.task for line in cluster.ledger.lines() if line.event == "end"}
    outcome.beside = {replicas: (len(ids), len(ids - done)) for replicas, ids in beside.items() if ids}
    _account(cluster, outcome, began, ended)


def _account(cluster: Cluster, outcome: Outcome, began: float, ended: float) -> None:
    ledger = cluster.ledger
    missing, again = ledger.missing(), set(ledger.repeated())
    outcome.refused, outcome.slowest = len(cluster.errors), round(cluster.slowest, 1)
    outcome.words = cluster.ended()
    outcome.ended = sorted(outcome.words)
    lines = ledger.lines()
    for pool in cluster.pools:
        sent = cluster.sent[pool]
        begins = [line.time for line in lines if line.event == "begin" and line.task in sent and began <= line.time <= ended]
        ends = [line.time for line in lines if line.event == "end" and line.task in sent]
        moments = [began, *begins, ended]
        before = sum(began - RATED <= moment < began for moment in ends)
        outcome.pools[pool] = OfPool(
            accepted=len(sent),
            lost=len(missing & sent.keys()),
            twice=len(again & sent.keys()),
            paused=round(max(after - one for one, after in pairwise(moments)), 1),
            ratio=round(sum(ended - RATED <= moment < ended for moment in ends) / max(1, before), 2),
        )
    if outcome.refused:
        outcome.words["producer"] = "\n".join(cluster.errors[:5])
    for pool in cluster.pools:
        if outcome.pools[pool].lost or outcome.pools[pool].paused > SOON[cluster.stack.name]:
            said = cluster.workers[pool].logs(timestamps=True).decode(errors="replace").splitlines()
            outcome.words[pool] = "\n".join(line[:400] for line in said if "faults.effect" not in line)[-20_000:]
