"""Has Kubernetes end idle workers first when a group gets smaller: `python -m celery_kit.operate.kubernetes.idle`.

A pod of its own, with an account that may list and patch the pods of its namespace. It asks the kit's exporter which workers
hold tasks, and notes that on their pods as the cost of deleting them. Without it a busy worker that is ended still finishes its
tasks, within its grace period, while an idle one stays.
Source: kubernetes.io/docs/concepts/workloads/controllers/replicaset, "Pod deletion cost". It advises against frequent changes:
a pod is only patched when it becomes idle or busy, at most every :data:`EVERY` seconds.
"""

import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from celery_kit.operate.stacks.docker import Facts

EVERY, PATIENCE = 15.0, 10.0
COST = "controller.kubernetes.io/pod-deletion-cost"
#: The metrics of a worker that holds tasks.
HOLDS = ("celery_kit_worker_active", "celery_kit_worker_reserved")
EXPORTER = "http://exporter:9808/metrics"
#: Where Kubernetes puts the token of a pod's account, its authority and its namespace.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Written after each round: the probes look at its age.
ROUND = Path("/tmp/round")


@dataclass(frozen=True)
class Pods:
    """The pods of a namespace, by Kubernetes' API at `url`."""

    url: str
    namespace: str
    account: Path = ACCOUNT

    def workers(self) -> Iterator[tuple[str, str]]:
        """The name of each worker's pod, and its cost; empty: it has none. Raises OSError if the API does not answer."""
        for one in self._ask("GET", "?labelSelector=celery-kit.role%3Dworker")["items"]:
            yield one["metadata"]["name"], (one["metadata"].get("annotations") or {}).get(COST, "")

    def note(self, name: str, cost: str) -> None:
        """Note the cost of a pod. Raises OSError if the API does not answer, or refuses."""
        self._ask("PATCH", f"/{name}", {"metadata": {"annotations": {COST: cost}}})

    def _ask(self, method: str, path: str, body: "Facts | None" = None) -> "Facts":
        """A request. The token is read each time: Kubernetes replaces it."""
        token, authority = (self.account / "token").read_text(), self.account / "ca.crt"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}
        data = json.dumps(body).encode() if body else None
        request = Request(f"{self.url}/api/v1/namespaces/{self.namespace}/pods{path}", data, headers, method=method)
        context = ssl.create_default_context(cafile=str(authority)) if self.url.startswith("https:") else None
        with urlopen(request, timeout=PATIENCE, context=context) as answer:
            found: Facts = json.load(answer)
            return found


def idle(metrics: str) -> set[str]:
    """The host names of the workers that hold no task, which are the names of their pods."""
    from prometheus_client.parser import text_string_to_metric_families  # of the monitor's image

    held: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for one in family.samples if family.name in HOLDS else ():
            node = one.labels["worker"].partition("@")[2]
            held[node] = held.get(node, 0) + one.value
    return {node for node, number in held.items() if not number}


def round_of(pods: Pods, exporter: str = EXPORTER) -> None:
    """Note the cost of each worker whose pod has another: 0 of an idle one, 1 of others, also of those that do not answer."""
    with urlopen(exporter, timeout=PATIENCE) as answer:
        free = idle(answer.read().decode())
    for name, cost in [*pods.workers()]:
        if (wanted := "0" if name in free else "1") != (cost or "0"):
            pods.note(name, wanted)


def of_environ(environ: Mapping[str, str]) -> Pods:
    """The pods of this pod's namespace."""
    host = environ["KUBERNETES_SERVICE_HOST"]
    url = f"https://{f'[{host}]' if ':' in host else host}:{environ['KUBERNETES_SERVICE_PORT']}"
    return Pods(url, (ACCOUNT / "namespace").read_text())


def main() -> None:
    """Go on until the process is stopped. A server that does not answer is asked again."""
    pods = of_environ(os.environ)
    while True:
        try:
            round_of(pods)
            ROUND.touch()
        except OSError as error:
            print(f"celery-kit: {error}", flush=True)
        time.sleep(EVERY)


if __name__ == "__main__":
    main()
