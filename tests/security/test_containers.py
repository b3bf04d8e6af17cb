"""What is looked for in the containers of a stack, as rows of the table (checks/), and the networks that they are on."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import settings
from testbed.stack import SESSION
from tests.harness.containers import LABEL

#: The services whose images are not the kit's.
OTHERS = ("broker", "results", "prometheus", "grafana")
MANAGERS = ("apt", "apt-get", "dpkg", "pip", "pip3", "perl")
SETUID = "find / -xdev -type f -perm /6000 2>/dev/null"
#: Asks a resolver outside of the engine's networks for a name. Prints the size of its answer.
OUTSIDE = """
import socket, sys
query = b"\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0\\x07example\\x03com\\0\\0\\x01\\0\\x01"
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.settimeout(3)
asked.sendto(query, (sys.argv[1], 53))
print(len(asked.recv(500)))
"""


def docker(*words: str, check: bool = True, **options: Any) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=check, timeout=60, **options)
    return str(done.stdout).strip()


@dataclass(frozen=True)
class Running:
    """A running container."""

    name: str

    @cached_property
    def facts(self) -> Any:
        return json.loads(docker("inspect", self.name))[0]

    @property
    def host(self) -> Any:
        return self.facts["HostConfig"]

    @property
    def service(self) -> str:
        return str(self.facts["Config"]["Labels"].get("com.docker.compose.service", ""))

    @property
    def is_the_kits(self) -> bool:
        return self.service not in OTHERS

    def sh(self, line: str, user: str = "") -> str:
        return docker("exec", *(["--user", user] if user else []), self.name, "sh", "-c", line, check=False)

    @cached_property
    def status(self) -> dict[str, str]:
        """What the kernel says of its first process."""
        lines = self.sh("cat /proc/1/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def writable(one: Running) -> str:
    """The folders of the image that root, if anybody became it, could write to."""
    return one.sh("for folder in / /etc /usr/bin /opt /srv; do touch $folder/x 2>/dev/null && echo $folder; done", "0")


#: What must not be possible, as rows of the table: each returns what it found, which is empty if it is not.
CHECKS: dict[str, Callable[[Running], object]] = {
    "its process is root": lambda one: one.status["Uid"].split()[0] == "0",
    "its process has a group of root's": lambda one: one.status["Gid"].split()[0] == "0",
    "it has capabilities": lambda one: int(one.status["CapBnd"], 16) | int(one.status["CapEff"], 16),
    "a program can gain rights": lambda one: one.status["NoNewPrivs"] != "1",
    "system calls are not filtered": lambda one: one.status["Seccomp"] != "2",
    "root can change the image's files": writable,
    "it is privileged": lambda one: one.host["Privileged"],
    "it has the host's network, processes or memory": lambda one: [
        name for name in ("NetworkMode", "PidMode", "IpcMode", "UTSMode") if one.host[name] == "host"
    ],
    "it has the engine's socket or a folder of the host": lambda one: [
        mount["Source"]
        for mount in one.facts["Mounts"]
        if mount["Type"] == "bind" and (mount["RW"] or "docker" in mount["Source"])
    ],
    "it has devices of the host": lambda one: one.host["Devices"] or [],
    "it can start processes without limit": lambda one: not (one.host["PidsLimit"] or 0) > 0,
    "it can take all memory": lambda one: not one.host["Memory"] > 0,
    "its log can fill the disk": lambda one: (
        not one.host["LogConfig"]["Config"].get("max-size") or not one.host["LogConfig"]["Config"].get("max-file")
    ),
    "other machines reach its ports": lambda one: [
        address for port in (one.host["PortBindings"] or {}).values() for address in port if address["HostIp"] != "127.0.0.1"
    ],
    "it has a file that runs with its owner's rights": lambda one: one.is_the_kits and one.sh(SETUID, "0"),
    "it can install packages": lambda one: (
        one.is_the_kits
        and one.sh(f"for one in {' '.join(MANAGERS)}; do command -v $one; done; python -m pip --version 2>/dev/null")
    ),
}


@contextmanager
def started_carelessly() -> Iterator[Running]:
    """A container as it is often started."""
    image = settings().get("PYTHON_IMAGE") or "python:3.13-slim-trixie"
    socket = f"{ROOT / 'README.md'}:/var/run/docker.sock"
    name = docker(
        "run", "--detach", "--rm", "--privileged", "--network", "host", "--log-driver", "json-file",
        "--device", "/dev/null:/dev/null", "--volume", socket, "--label", f"{LABEL}={SESSION}", image, "sleep", "600",
    )  # fmt: skip
    published = docker("run", "--detach", "--rm", "--publish", "0.0.0.0::80", image, "sleep", "600")
    one = Running(name)
    one.host["PortBindings"] = Running(published).host["PortBindings"]  # the host's network has none
    try:
        yield one
    finally:
        docker("rm", "--force", name, published)


def test_servers_have_no_way_out_and_workers_have_one(stack: list[Running]) -> None:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    outside = [line.split()[1] for line in lines if line.startswith("nameserver")]
    for one in stack:
        networks = one.facts["NetworkSettings"]["Networks"]
        names = {name.rpartition("_")[2] for name in networks}
        assert names <= {"inside", "metrics"} if one.service in ("broker", "results") else "default" in names
    used = {name for one in stack for name in one.facts["NetworkSettings"]["Networks"]}
    inside = next(name for name in used if name.endswith("_inside"))
    for name in (name for name in used if not name.endswith("_default")):
        assert json.loads(docker("network", "inspect", name))[0]["Options"] == {
            "com.docker.network.bridge.enable_ip_masquerade": "false"
        }
    worker = next(one for one in stack if one.service == "worker")

    def answered(network: str) -> str:
        words = (
            "run",
            "--rm",
            "--interactive",
            "--network",
            network,
            "--entrypoint",
            "python",
            worker.facts["Config"]["Image"],
        )
        return docker(*words, "-", outside[0], check=False, input=OUTSIDE)

    if outside and answered("bridge"):  # the resolver of this machine can be asked from a container
        assert answered(inside.replace("_inside", "_default"))
        assert not answered(inside)
