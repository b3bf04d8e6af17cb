"""Which pods Kubernetes is told to end first: a small server answers in place of its API and of the exporter."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from celery_kit.base.facts import Server, vitals_of
from celery_kit.operate.kubernetes.idle import COST, Pods, idle, of_environ, round_of
from celery_kit.operate.look.exporter import metrics
from celery_kit.operate.look.status import Snapshot


def exported(**holds: tuple[int, int]) -> str:
    """The exporter's own answer, for workers by pod: tasks that run, and tasks that were taken and not begun."""
    workers = {
        f"mail@{pod}": vitals_of(
            {
                "pool": "solo",
                "consuming": ["mail"],
                "active": active,
                "reserved": reserved,
                "processed": 9,
                "memory": 1,
                "measures": [],
            }
        )
        for pod, (active, reserved) in holds.items()
    }

    class Look(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from metrics(Snapshot(Server("", "", []), None, workers, []))

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Look())
    return generate_latest(registry).decode()


class Cluster(HTTPServer):
    """Pods with their costs, and what was asked."""

    def __init__(self, costs: dict[str, str | None], metrics: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.costs, self.metrics, self.asked, self.refuses = costs, metrics, list[str](), False


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def log_message(self, *_: object) -> None: ...

    def _answer(self, body: str) -> None:
        self.send_response(403 if self.server.refuses else 200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        if self.path == "/metrics":
            return self._answer(self.server.metrics)
        assert self.path == "/api/v1/namespaces/shop/pods?labelSelector=celery-kit.role%3Dworker"
        assert self.headers["Authorization"] == "Bearer token"
        annotations = {name: cost and {COST: cost} for name, cost in self.server.costs.items()}
        pods = [{"metadata": {"name": name, "annotations": found}} for name, found in annotations.items()]
        return self._answer(json.dumps({"items": pods}))

    def do_PATCH(self) -> None:
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.rpartition("/")[2]
        self.server.costs[name] = body["metadata"]["annotations"][COST]
        self.server.asked.append(name)
        self._answer("{}")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    costs = {"idle": None, "was-busy": "1", "busy": None, "prefetched": "0", "silent": None, "still-busy": "1"}
    held = {"idle": (0, 0), "was-busy": (0, 0), "busy": (1, 0), "prefetched": (0, 3), "still-busy": (2, 2)}
    found = Cluster(costs, exported(**held))
    thread = Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def pods(cluster: Cluster, tmp_path: Path) -> Pods:
    (tmp_path / "token").write_text("token")
    return Pods(f"http://127.0.0.1:{cluster.server_port}", "shop", tmp_path)


def test_a_worker_is_idle_that_says_that_it_holds_no_task() -> None:
    assert idle(exported(a=(0, 0), b=(1, 0), c=(0, 1))) == {"a"}


def test_idle_workers_cost_least_and_only_changes_are_sent(cluster: Cluster, pods: Pods) -> None:
    """A worker that does not answer is taken for busy: a solo worker does not during its task."""
    exporter = f"http://127.0.0.1:{cluster.server_port}/metrics"
    round_of(pods, exporter)
    assert cluster.asked == ["was-busy", "busy", "prefetched", "silent"]
    assert [name for name, cost in cluster.costs.items() if cost == "1"] == ["busy", "prefetched", "silent", "still-busy"]
    round_of(pods, exporter)
    assert len(cluster.asked) == 4


def test_an_api_that_refuses_is_an_error_that_the_next_round_may_not_have(cluster: Cluster, pods: Pods) -> None:
    cluster.refuses = True
    with pytest.raises(HTTPError) as error:
        list(pods.workers())
    assert isinstance(error.value, OSError)


def test_the_api_is_where_kubernetes_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("celery_kit.operate.kubernetes.idle.ACCOUNT", tmp_path)
    (tmp_path / "namespace").write_text("shop")
    found = of_environ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"})
    assert (found.url, found.namespace) == ("https://10.0.0.1:443", "shop")
    found = of_environ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"})
    assert found.url == "https://[fd00::1]:443"
