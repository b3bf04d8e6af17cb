"""`make k8s` as a user types it; and the pods that it renders, run as containers by the engine.

There is no cluster here. So containers stand in for pods: what a pod's specification says of its command, variables, Secrets,
volumes, user and rights is given to the engine, and its probes are run in it. What Kubernetes itself and operators do with the
objects is not tested: scheduling, NetworkPolicy, budgets, scaling, RabbitmqCluster.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_kit.operate.kubernetes.check import rendered
from celery_kit.operate.kubernetes.objects import Pod, Rendered
from celery_kit.operate.stacks.images import settings
from tests.deploy.conftest import Checkout, clone
from tests.harness.combinations import one_of
from tests.harness.containers import LABEL, LABELS
from tests.harness.waiting import until

TABLE = "[groups.mail]\nqueues = ['celery', 'mail']\npool = 'gevent'\n[groups.reports]\nqueues = ['reports']\npool = 'gevent'\n"


def docker(*words: str) -> str:
    return subprocess.run(("docker", *words), capture_output=True, text=True, timeout=120, check=True).stdout.strip()


class Node:
    """Runs pods as containers, in a network where they have the names of the Services that select them."""

    def __init__(self, objects: list[dict[str, Any]], secrets: list[dict[str, Any]], folder: Path) -> None:
        self.stack, self.folder = Rendered(objects), folder
        self.data = {("secret", one["metadata"]["name"]): one["stringData"] for one in secrets}
        self.data |= {("configMap", one["metadata"]["name"]): one["data"] for one in self.stack.of("ConfigMap")}
        self.name = f"celery-kit-k8s-{folder.name}-{os.getpid()}"
        docker("network", "create", "--label", f"{LABEL}={LABELS[LABEL]}", self.name)
        self.running: list[str] = []

    def start(self, pod: Pod, image: str) -> None:
        (main,), context = pod.containers, pod.spec["securityContext"]
        own, volumes = main["securityContext"], {one["name"]: one for one in pod.spec["volumes"]}
        services = [one for one in self.stack.of("Service") if one["spec"]["selector"].items() <= pod.labels.items()]
        words = [
            "run",
            "--detach",
            "--name",
            self.container(pod),
            "--label",
            f"{LABEL}={LABELS[LABEL]}",
            "--network",
            self.name,
        ]
        words += [f"--network-alias={one['metadata']['name']}" for one in services]
        words += [f"--user={context['runAsUser']}:{context['runAsGroup']}", *["--read-only"] * own["readOnlyRootFilesystem"]]
        words += [f"--cap-drop={one}" for one in own["capabilities"]["drop"]]
        words += ["--security-opt=no-new-privileges"] * (own["allowPrivilegeEscalation"] is False)
        words += [f"--env={name}={value}" for name, value in self._environment(main).items()]
        for one in main["volumeMounts"]:
            files = self._files(volumes.get(one["name"], {}))
            words.append(f"--volume={self._written(pod, one['name'], files)}{one['mountPath']}{':ro' * bool(files)}")
        program, *arguments = main.get("command", [""])
        words += [f"--entrypoint={program}"] * bool(program)
        docker(*words, image, *arguments)
        self.running.append(self.container(pod))

    def probe(self, pod: Pod, name: str) -> bool:
        """Whether a pod's probe succeeds."""
        words = ("docker", "exec", self.container(pod), *pod.containers[0][name]["exec"]["command"])
        return subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 0

    def python(self, pod: Pod, *words: str) -> str:
        return docker("exec", self.container(pod), "python", "-m", *words)

    def container(self, pod: Pod) -> str:
        return f"{self.name}-{pod.owner.partition('/')[2]}"

    def _environment(self, main: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for one in main.get("envFrom", []):
            found |= self.data.get(("configMap", one.get("configMapRef", {}).get("name")), {})
        for one in main.get("env", []):
            of = one.get("valueFrom", {}).get("configMapKeyRef")
            found[one["name"]] = self.data["configMap", of["name"]][of["key"]] if of else one["value"]
        return found

    def _files(self, volume: dict[str, Any]) -> dict[str, str]:
        """The files of a volume of Secrets and ConfigMaps; none: it is empty at first, or a claim."""
        found: dict[str, str] = {}
        for part in (volume, *volume.get("projected", {}).get("sources", [])):
            for kind in ("secret", "configMap"):
                if given := part.get(kind):
                    data = self.data[kind, given.get("secretName") or given["name"]]
                    items = given.get("items") or [{"key": key, "path": key} for key in data]
                    found |= {one["path"]: data[one["key"]] for one in items}
        return found

    def _written(self, pod: Pod, name: str, files: dict[str, str]) -> str:
        """What names a volume of files for the engine; empty for a volume that is made with its container."""
        folder = self.folder / pod.owner.replace("/", "-") / name
        for file, text in files.items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        return f"{folder}:" if files else ""

    def remove(self) -> None:
        for name in self.running:
            print(subprocess.run(("docker", "logs", "--tail", "20", name), capture_output=True, text=True, check=False))
            docker("rm", "--force", "--volumes", name)
        docker("network", "rm", self.name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A clone with two groups, and images of its own name."""
    found = clone(tmp_path_factory.mktemp("kubernetes") / "celery-kit")
    (found.folder / "app/workers.toml").write_text(TABLE)
    found.environ["IMAGE"] = "celery-kit-test/k8s"
    try:
        yield found
    finally:
        images = docker("image", "ls", "--quiet", found.environ["IMAGE"]).split()
        subprocess.run(("docker", "image", "rm", "--force", *images), capture_output=True, check=False)


def test_what_a_user_types(place: Checkout) -> None:
    """Up to what needs a cluster, `kubectl apply`."""
    made = place.make("k8s", "BROKER=redis", "NAMESPACE=shop")
    assert made.returncode == 0
    assert made.stdout.splitlines()[-3:] == [
        "  kubectl create namespace shop",
        "  make k8s-secrets NAMESPACE=shop | kubectl create -f -",
        "  kubectl apply -k .kit/kubernetes",
    ]
    assert place.make("k8s-secrets", "NAMESPACE=shop").returncode == 0
    assert place.make("k8s-check").returncode == 0
    deployment = place.folder / ".kit/kubernetes/worker/deployment.yaml"
    deployment.write_text(deployment.read_text().replace("readinessProbe:", "lifecycle: {}\n          #"))
    found = place.make("k8s-check")
    assert found.returncode == 2  # make's own code for 1
    assert "probes: Deployment/worker-mail: readinessProbe missing" in found.stdout.splitlines()


@pytest.mark.parametrize("secure", one_of(["", "mutual"], 1))
def test_the_pods_run_as_they_are_rendered(place: Checkout, tmp_path: Path, secure: str) -> None:
    """Servers, workers and beat of a stack whose servers are rendered whole: a task is sent, runs, and its result is read."""
    given = {"BROKER": "redis", "SECURE": secure, "OUT": str(tmp_path / "out")}
    assert place.make("images", POOL="gevent").returncode == 0
    assert place.make("k8s", **given).returncode == 0
    secrets = json.loads(place.make("k8s-secrets", **given).stdout)["items"]
    node = Node(rendered(tmp_path / "out"), secrets, tmp_path)
    pods = {pod.owner.partition("/")[2]: pod for pod in node.stack.ours}
    assert [*pods] == ["beat", "worker-mail", "worker-reports", "broker-redis", "results-redis"]
    server = settings()["REDIS_IMAGE"]
    try:
        for pod in reversed(pods.values()):
            node.start(pod, server if pod.role in ("broker", "results") else pod.containers[0]["image"])
        for name, pod in pods.items():
            until(f"{name} is ready", lambda pod=pod: node.probe(pod, "readinessProbe"))  # type: ignore[misc]
            assert node.probe(pod, "livenessProbe")
        said = node.python(
            pods["worker-mail"], "celery_kit.operate.look.send", "--wait=20", "--", "reports.daily_statistics", "[]", "{}"
        )
        assert "SUCCESS" in said
        docker("restart", node.container(pods["results-redis"]))  # in a pod, too, its volumes stay
        until("the server is ready again", lambda: node.probe(pods["results-redis"], "readinessProbe"))
    finally:
        node.remove()
