"""The servers of a stack, as its compose file starts them."""

import os
import re
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

import docker
import requests
from dotenv import dotenv_values

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks import certificates, passwords
from celery_kit.operate.stacks.images import of_python
from testbed.servers import EVERY
from testbed.servers.contract import APP, PASSWORD, TLS_FOLDER, secured

#: The name of the session, the same in all of its processes. Everything that it starts is labelled with it.
SESSION = os.environ.setdefault("CELERY_KIT_TEST_SESSION", f"celery-kit-test-{os.getpid()}")
#: Seconds until all servers of a stack are healthy.
HEALTHY = 180

#: The variables of the ports that stacks publish: the containers' labels name them.
PORTS = tuple(
    sorted(
        variable
        for file in (*ROOT.glob("compose.*.yaml"), *(ROOT / "deploy").rglob("*.yaml"))
        for variable in re.findall(r"celery-kit\.port\.\d+: (\w+)", file.read_text())
    )
)


class Stack:
    """The servers of one broker's compose file - broker, results, mail catcher - on ports that were free.

    `which`: distinguishes several stacks of the same file. `services`: the services to start, if not all of these. Use it
    in a `with`: it is started and stopped there.
    """

    def __init__(self, name: str, which: str = "", services: Sequence[str] = ()) -> None:
        self.name = name
        self.server = EVERY[name]
        self.project = f"{SESSION}-{name}{which}"
        self.file = f"compose.{name}.yaml"
        self.environ = {
            **{key: value for key, value in dotenv_values(ROOT / ".env").items() if value},
            **of_python(),
            "COMPOSE_PROJECT_NAME": self.project,
            **{name: PASSWORD for server in EVERY.values() for name in server.container.passwords},
            "MAIL_PASSWORD": PASSWORD,
            **dict.fromkeys(PORTS, "0"),
            **certificates.variables(servers=(*self.server.hosts, "results")),
        }
        # The results server is a separate service, or the broker with that name as an alias.
        self.results = "results" if "results" in self.run("config", "--services").split() else self.server.hosts[0]
        self.services = sorted(set(services) or {*self.server.hosts, *self.server.nodes, "mail", self.results})

    @property
    def network(self) -> str:
        """The name of the network that its servers are on."""
        return f"{self.project}_inside"

    def let_out(self, container: Any) -> None:
        """Connect a container of that network to the other one too, which has the mail catcher, and leads out."""
        docker.from_env().networks.get(f"{self.project}_default").connect(container)

    def __enter__(self) -> "Stack":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the servers, and wait until all are healthy. Raises RuntimeError if that fails."""
        self.run("up", "--detach", "--wait", "--wait-timeout", str(HEALTHY), *self.services)

    def stop(self) -> None:
        """Remove the servers and their data."""
        self.run("down", "--volumes", "--remove-orphans", "--timeout", "1")

    @cache  # noqa: B019  # a handful of stacks, each as long as the session
    def port(self, number: int, service: str = "") -> int:
        """The host's port for a port of a service; by default of the broker, or of its first node."""
        first = self.server.hosts if number == self.server.port or not self.server.nodes else self.server.nodes
        return int(self.run("port", service or first[0], str(number)).rpartition(":")[2])

    def urls(self, namespace: str, inside: bool = False) -> str:
        """The broker's URL, or those of its nodes with a semicolon between them, on this machine or `inside` its network."""
        number, folder = self.server.port, "/tls" if inside else TLS_FOLDER
        places = [(one, number) if inside else ("127.0.0.1", self.port(number, one)) for one in self.server.hosts]
        return ";".join(
            secured(self.server.url.format(host=host, port=port, namespace=namespace), folder) for host, port in places
        )

    def results_url(self, database: int) -> str:
        """The URL of a database of its results server on this machine."""
        if self.results == self.server.hosts[0]:
            return self.urls(str(database))
        return secured(f"redis://{APP}:{PASSWORD}@127.0.0.1:{self.port(6379, self.results)}/{database}")

    def addresses(self) -> dict[str, str]:
        """The variable of a client of this machine whose server sends it to others."""
        near = [f"{node}:6379=127.0.0.1:{self.port(6379, node)}" for node in self.server.nodes]
        return {"ADDRESSES": ",".join(near)} if near else {}

    @cache  # noqa: B019  # the same
    def account(self, service: str, role: str) -> str:
        """The user of a role on a server, and the password, as a URL has them: `user:password`. Raises RuntimeError."""
        said = b""
        for _ in range(5):  # a busy engine may answer nothing
            status, said = self.container(service).exec_run([passwords.START, "account", role])
            secret, _, user = said.decode().strip().partition("\n")
            if status == 0 and secret and user:
                return f"{user}:{quote(secret, safe='')}"
            time.sleep(1)  # nothing tells when a busy engine will answer
        raise RuntimeError(f"{service} does not tell the account of {role}: {said.decode()[-500:]}")

    def url_for(self, role: str, url: str, service: str = "") -> str:
        """The URL of a server of this stack, or those of its nodes, for another role than its own; by default of the broker."""
        account = self.account(service or self.server.hosts[0], role)
        each = [one.partition("://") for one in url.split(";")]
        return ";".join(f"{scheme}://{account}@{rest.rpartition('@')[2]}" for scheme, _, rest in each)

    def container(self, service: str) -> Any:
        """A service's container, as an object of the Docker client."""
        return docker.from_env().containers.get(f"{self.project}-{service}-1")

    def run(self, *argv: str) -> str:
        """Run a `docker compose` command on this stack, such as `stop mail`. Returns its output. Raises RuntimeError."""
        command, environ = ["docker", "compose", "-f", self.file, *argv], {**os.environ, **self.environ}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def messages(self) -> list[dict[str, Any]]:
        """The messages that the mail catcher has received."""
        answer = requests.get(f"http://127.0.0.1:{self.port(8025, 'mail')}/messages", auth=(APP, PASSWORD), timeout=5)
        return list(answer.json())
