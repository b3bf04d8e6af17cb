"""A swarm of three nodes on this machine: engines in containers, and a registry that they pull from, all of this run alone."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import docker
from docker.types import IPAMConfig, IPAMPool

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import settings
from testbed.stack import SESSION
from tests.harness.containers import LABELS
from tests.harness.ports import free_port
from tests.harness.waiting import until

#: The subnet of the nodes, whose addresses a swarm keeps: 10.0.0.0/8 has those of the swarm's own networks.
SUBNET, FIRST = f"172.31.{os.getpid() % 250}", 10
#: The nodes: the first manages the swarm, and has the servers' data.
NODES = ("one", "two", "three")
REGISTRY = "registry:5000"
CONFIG = """
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ":5000"}
"""


def built(tag: str, folder: str, base: str) -> str:
    """An image of a Dockerfile of the tests."""
    words = ("docker", "build", "--quiet", "--tag", tag, "--build-arg", f"BASE={base}", str(ROOT / folder))
    subprocess.run(words, check=True, capture_output=True, timeout=500)
    return tag


class Nodes:
    """Three nodes, the registry, and a folder that is /effects in each node."""

    def __init__(self) -> None:
        self.client = docker.from_env()
        self.name = f"{SESSION}-swarm"
        self.folder = Path("/tmp") / self.name
        self.containers: dict[str, Any] = {}
        self.port = free_port()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for name in ("effects", "registry", *NODES):
            (self.folder / name).mkdir(parents=True)
        self.effects.chmod(0o777)  # the images' user is another one
        base = settings()["PYTHON_IMAGE"]  # of Debian, and there already
        node, registry = built("celery-kit-test/node", "tests/swarm", base), "celery-kit-test/registry"
        built(registry, "tests/deploy/registry", base)
        pool = IPAMPool(subnet=f"{SUBNET}.0/24")
        self.network = self.client.networks.create(self.name, ipam=IPAMConfig(pool_configs=[pool]), labels=LABELS)
        (self.folder / "registry/config.yml").write_text(CONFIG)
        self._run(
            "registry", registry, FIRST - 1, ports={"5000/tcp": ("127.0.0.1", self.port)},
            tmpfs={"/var/lib/registry": "mode=1777"}, volumes=self._bind("registry", "/etc/registry"),
        )  # fmt: skip
        for number, name in enumerate(NODES):
            disk = self.client.volumes.create(f"{self.name}-{name}", labels=LABELS)
            disks = {disk.name: {"bind": "/var/lib/docker", "mode": "rw"}}
            self._run(
                name, node, FIRST + number, ["--insecure-registry", REGISTRY], privileged=True, hostname=name, init=True,
                tmpfs={"/run": ""},  # where an engine looks for its former process
                volumes=disks | self._bind(name, "/node") | self._bind("effects", "/effects"),
            )  # fmt: skip
        for name in NODES:
            until(f"the engine of node {name} answers", partial(self.docker, name, "info", check=False), 60)
        self.docker("one", "swarm", "init", "--advertise-addr", self.address("one"))
        token = self.docker("one", "swarm", "join-token", "--quiet", "worker")
        for name in NODES[1:]:
            self.docker(name, "swarm", "join", "--advertise-addr", self.address(name), "--token", token, self.address("one"))
        until("all nodes are ready", lambda: self.ready() == sorted(NODES), 60)

    def _run(self, name: str, image: str, number: int, command: Any = None, **options: Any) -> None:
        made = self.client.containers.create(image, command, name=f"{self.name}-{name}", labels=LABELS, **options)
        with suppress(docker.errors.APIError):
            self.client.networks.get("bridge").disconnect(made)
        self.network.connect(made, ipv4_address=f"{SUBNET}.{number}", aliases=[name])
        made.start()
        self.containers[name] = made

    def _bind(self, folder: str, inside: str) -> dict[str, dict[str, str]]:
        return {str(self.folder / folder): {"bind": inside, "mode": "rw"}}

    @property
    def effects(self) -> Path:
        return self.folder / "effects"

    def address(self, name: str) -> str:
        return f"{SUBNET}.{FIRST + NODES.index(name)}"

    def host(self, name: str = "one") -> str:
        """The DOCKER_HOST of a node's engine."""
        return f"unix://{self.folder}/{name}/docker.sock"

    def docker(self, name: str, *words: str, check: bool = True) -> str:
        """What `docker …` prints on a node. Without `check`, nothing if it fails."""
        command = ["docker", "--host", self.host(name), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert not (check and done.returncode), f"{' '.join(command)}: {done.stderr}"
        return "" if done.returncode else done.stdout.strip()

    def ready(self) -> list[str]:
        """The nodes that the swarm takes for ready."""
        shown = self.docker("one", "node", "ls", "--format", "{{.Hostname}} {{.Status}}")
        return sorted(line.split()[0] for line in shown.splitlines() if line.endswith(" Ready"))

    def push(self, image: str, name: str) -> str:
        """Push an image of this machine into the registry. Gives its name as the nodes know it, with its digest."""
        self.client.images.get(image).tag(there := f"127.0.0.1:{self.port}/{name}")
        return self._pushed(there, name)

    def add(self, image: str, name: str, text: str, *files: Path, **arguments: str) -> str:
        """Push an image with something added to it. `text`: the end of a Dockerfile; `files`: what it copies."""
        there, folder = f"127.0.0.1:{self.port}/{name}", self.folder / "build"
        folder.mkdir(exist_ok=True)
        for file in files:
            shutil.copy(file, folder)
        given = "".join(f"ARG {one}\n" for one in arguments)
        (folder / "Dockerfile").write_text(f"FROM {image}\n{given}{text}")
        words = [word for one, value in arguments.items() for word in ("--build-arg", f"{one}={value}")]
        subprocess.run(["docker", "build", "--quiet", *words, "--tag", there, folder], check=True, capture_output=True)
        return self._pushed(there, name)

    def _pushed(self, there: str, name: str) -> str:
        said = subprocess.run(["docker", "push", there], capture_output=True, text=True, check=True, timeout=300).stdout
        return f"{REGISTRY}/{name}@{next(word for word in said.split() if word.startswith('sha256:'))}"

    def share(self, stack: str) -> None:
        """Make the volume `data` of a stack the folder of effects, on each node."""
        where = ("--opt", "type=none", "--opt", "o=bind", "--opt", "device=/effects")
        for name in NODES:
            self.docker(name, "volume", "create", *where, f"{stack}_data")

    def kill(self, name: str) -> None:
        """As if the power failed: no packet of it arrives any more, and nothing of it runs."""
        self.network.disconnect(self.containers[name], force=True)
        self.containers[name].kill()

    def revive(self, name: str) -> None:
        """Start a node that was killed. It is one of the swarm again, as it was."""
        self.network.connect(self.containers[name], ipv4_address=self.address(name), aliases=[name])
        self.containers[name].start()
        until(f"node {name} is ready", lambda: name in self.ready(), 90)

    def hostnames(self, name: str) -> set[str]:
        """The host names of the containers that run on a node."""
        return set(self.docker(name, "ps", "--format", "{{.ID}}").split())

    def services(self, stack: str) -> dict[str, Any]:
        """A stack's services by their name within it, as the swarm describes them."""
        ids = self.docker("one", "service", "ls", "--quiet", "--filter", f"label=com.docker.stack.namespace={stack}").split()
        found = json.loads(self.docker("one", "service", "inspect", *ids)) if ids else []
        return {one["Spec"]["Name"].removeprefix(f"{stack}_"): one for one in found}

    def close(self) -> None:
        """Remove everything."""
        for one in self.client.containers.list(all=True, filters={"name": f"^/{self.name}-"}):
            with suppress(docker.errors.APIError):
                one.remove(force=True, v=True)
        for network in self.client.networks.list(filters={"name": f"^{self.name}$"}):
            with suppress(docker.errors.APIError):
                network.remove()
        for volume in self.client.volumes.list(filters={"name": f"{self.name}-"}):
            with suppress(docker.errors.APIError):
                volume.remove(force=True)
        for one in self.client.images.list():
            for tag in [tag for tag in one.tags if tag.startswith(f"127.0.0.1:{self.port}/")]:
                with suppress(docker.errors.APIError):
                    self.client.images.remove(tag)
        shutil.rmtree(self.folder, ignore_errors=True)
