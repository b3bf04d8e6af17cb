"""The stacks of containers, as the command line handles them: `docker compose` on the files at the project's root.

Nothing is remembered here: what runs is what the engine says runs.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dotenv import dotenv_values

from app.backends import BACKENDS
from app.brokers import BROKERS
from app.facts import Member
from app.profile import Profile
from app.pythons import STANDINS, Python, chosen
from app.refusal import refuse
from app.schedule import TIMETABLE

ROOT = Path(__file__).resolve().parents[1]
PROJECT = os.environ.get("COMPOSE_PROJECT_NAME") or "celery-kit"
WAIT_SECONDS = "180"
#: What all of a stack's processes have to agree on. Paths are each process' own.
SHARED = (
    "BROKER", "BACKEND", "POOL", "ENGINE", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "TASK_SERIALIZER", "ACCEPT_CONTENT",
    "TASK_TIME_LIMIT", "VISIBILITY_TIMEOUT", "MAX_DELIVERIES", "DELIVERY", "RESULT_EXPIRES", "TIMEZONE", "SMTP_HOST",
    "SMTP_PORT",
)  # fmt: skip


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, text=True, check=False, **options)


def prepare() -> None:
    """Have an engine that answers, and base images to build on. Ends with their own line and exit code where it cannot."""
    row = python()
    chooser = ("deploy/images/choose.sh", row.version, row.variable, row.debian, ", ".join(STANDINS))
    for script in (("deploy/engine/start.sh",), chooser):
        if code := run(*script).returncode:
            raise SystemExit(code)


def settings() -> dict[str, str]:
    """The environment, and .env below it, as Compose reads them."""
    return {key: value for key, value in dotenv_values(ROOT / ".env").items() if value} | dict(os.environ)


def python() -> Python:
    """The version of Python that images have, by PYTHON."""
    return chosen(settings())


def of_python() -> dict[str, str]:
    """What Compose is told of it, once the base images are chosen."""
    return python().environ(settings())


def monitor_password() -> Path:
    """The file that holds what Flower and Grafana ask for, user `kit`; made with a password of its own where there is none."""
    file = ROOT / (os.environ.get("MONITOR_PASSWORD_FILE") or ".kit/monitor/password")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.parent.chmod(0o700)  # the file itself is read by the image's user
        file.write_text(secrets.token_urlsafe(18))
    print(f"Flower (and Grafana) asks for user kit and the password in {file}", file=sys.stderr)
    return file


def build(pool: str) -> None:
    """Build the worker image of a pool and the mail catcher, from the same files that the stacks use."""
    file = next(broker.compose_file for broker in BROKERS.values() if broker.compose_file)  # they build the same
    code = run(
        "docker", "compose", "-f", file, "build", "--quiet", "worker", "mail", env={**os.environ, "POOL": pool, **of_python()}
    ).returncode
    if code:
        refuse(f"the image of pool {pool} could not be built; the reason stands above")


def image(tag: str) -> str:
    """An image of this project: a pool's, or `mail`. IMAGE is the name before the tag, a registry's host included.

    The tag tells a version of Python that is not the default.
    """
    return f"{os.environ.get('IMAGE') or 'celery-kit'}:{tag}{python().tag}"


def image_size(image: str) -> int:
    """The size of an image with its base, in bytes."""
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image, capture_output=True).stdout)


class Compose:
    """The stack of one broker, or, with none named, whichever stack of this project runs."""

    def __init__(self, broker: str | None = None) -> None:
        file = BROKERS[broker].compose_file if broker else None
        self.files = ("-f", file) if file else ()

    def _compose(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return run("docker", "compose", "-p", PROJECT, *self.files, *argv, **options)

    def _containers(self) -> list[dict[str, Any]]:
        shown = self._compose("ps", "--format", "json", capture_output=True)
        return [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("{")] if not shown.returncode else []

    def running(self) -> bool:
        return bool(_ids())

    def up(self, pool: str, backend: str, scale: int, profiles: Sequence[str] = ()) -> list[str]:
        """Build what is missing, start, wait until every service is healthy. Gives lines that say where things are."""
        if profiles:
            os.environ |= {"COMPOSE_PROFILES": ",".join(profiles), "WORKER_SEND_TASK_EVENTS": "1"}
            monitor_password()
        prepare()
        environ = {**os.environ, "POOL": pool, "BACKEND": backend, **of_python()}
        shown = self._compose("config", "--format", "json", env=environ, capture_output=True)
        if shown.returncode:
            refuse(f"the stack's settings cannot be used: {shown.stderr.strip().splitlines()[-1]}")
        services = json.loads(shown.stdout)["services"]
        if not BACKENDS[backend].has_server and "results" in services:
            del services["results"]
        _check_ports(services, self._containers())
        started = self._compose(
            "up",
            "--detach",
            "--build",
            "--remove-orphans",
            "--wait",
            "--wait-timeout",
            WAIT_SECONDS,
            "--scale",
            f"worker={scale}",
            *services,
            env=environ,
        )
        if started.returncode:
            self._compose("logs", "--no-color", "--tail", "15", env=environ)
            self._compose("down", capture_output=True, env=environ)
            refuse("the stack did not become healthy; its last words stand above, and it was taken down again")
        return [
            f"{name:<11}127.0.0.1:{port['published']} (port {port['target']} in the stack)"
            for name, service in services.items()
            for port in service.get("ports", [])
            if "published" in port
        ]

    def down(self, volumes: bool) -> None:
        self._compose("down", "--remove-orphans", *(["--volumes"] if volumes else []))

    def python(self, *argv: str) -> int:
        """Run `python -m …` inside the stack, in a container of the task codebase; gives its exit code."""
        mine = [c["Service"] for c in self._containers() if c["Service"] in ("worker", "beat") and c["State"] == "running"]
        if not mine:
            refuse("neither worker nor beat of the stack runs; 'make ps' shows what does, 'make up' starts it")
        return self._compose("exec", *([] if sys.stdin.isatty() else ["-T"]), mine[0], "python", "-m", *argv).returncode

    def inspected(self) -> list[dict[str, Any]]:
        """The engine's description of each of the stack's containers, those that ended included."""
        ids = _ids("--all")
        return list(json.loads(run("docker", "inspect", *ids, capture_output=True).stdout)) if ids else []

    def environment(self, inspected: list[dict[str, Any]]) -> dict[str, str]:
        """What a process of this machine needs to take part: a worker's own settings, servers by their published ports."""
        ours = next((one for one in inspected if _service(one) in ("worker", "beat")), None)
        if ours is None:
            refuse("the stack has neither worker nor beat; 'make ps' shows what it has, 'make up' starts it anew")
        theirs = dict(line.split("=", 1) for line in ours["Config"]["Env"] if "=" in line)
        own = tuple(room.variables for room in BROKERS.values() if room.variables)
        environ = {name: value for name, value in theirs.items() if value and (name in SHARED or name.startswith(own))}
        ports = _published(inspected)
        smtp = ports.get((theirs.get("SMTP_HOST", ""), int(theirs.get("SMTP_PORT") or 0)))
        environ |= {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(smtp)} if smtp else {}
        environ["SMS_GATEWAY_URL"] = _from_here(theirs.get("SMS_GATEWAY_URL", ""), ports)
        profile = Profile.from_environ(environ)
        environ["CELERY_BROKER_URL"] = _from_here(profile.broker_url, ports)
        environ["CELERY_RESULT_BACKEND"] = _from_here(profile.result_backend, ports)
        named = {name: ports.get(("broker", port)) for port, name in profile.broker.ports.items()}
        return environ | {name: str(published) for name, published in named.items() if published}

    def members(self, inspected: list[dict[str, Any]]) -> list[Member]:
        """Its containers, as the engine sees them."""
        return [_member(one) for one in inspected]

    def logs(self, follow: bool) -> None:
        self._compose("logs", *(["--follow"] if follow else ["--tail", "100"]))

    def ps(self) -> None:
        self._compose("ps", "--all")


def published_ports() -> dict[str, int]:
    """The ports that the stacks would publish, by the variables that move them; empty where no engine can tell."""
    found = {}
    for broker in BROKERS.values():
        shown = run("docker", "compose", "-f", broker.compose_file or "", "config", "--format", "json", capture_output=True)
        for service in json.loads(shown.stdout)["services"].values() if not shown.returncode else []:
            for port in service.get("ports", []):
                if variable := service.get("labels", {}).get(f"celery-kit.port.{port['target']}"):
                    found[str(variable)] = int(port["published"])
    return found


def _ids(*options: str) -> list[str]:
    """The stack's containers; those that run, unless `--all` is given. Asks the engine itself: Compose takes longer."""
    labels = (f"label=com.docker.compose.project={PROJECT}", "label=com.docker.compose.oneoff=False")
    filters = [word for label in labels for word in ("--filter", label)]
    return run("docker", "ps", "--quiet", *options, *filters, capture_output=True).stdout.split()


def _service(one: dict[str, Any]) -> str:
    return str(one["Config"]["Labels"].get("com.docker.compose.service", ""))


def _published(inspected: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """By each name that a container answers to in the stack, and its port: the port of this machine."""
    ports = {}
    for one in inspected:
        aliases = {alias for network in one["NetworkSettings"]["Networks"].values() for alias in network["Aliases"] or []}
        bound = one["NetworkSettings"]["Ports"] or one["HostConfig"]["PortBindings"] or {}
        for port, places in bound.items():
            for place in places or []:
                for name in aliases | {_service(one)}:
                    ports[name, int(port.partition("/")[0])] = int(place["HostPort"])
    return ports


def _from_here(url: str, ports: dict[tuple[str, int], int]) -> str:
    """A URL that names a role, with this machine's address of it; others stay as they are. Of several: each."""
    return ";".join(_one_from_here(one, ports) for one in url.split(";"))


def _one_from_here(url: str, ports: dict[tuple[str, int], int]) -> str:
    parts = urlsplit(url)
    try:
        port = ports.get((parts.hostname or "", parts.port or 0))
    except ValueError:  # no port: it is of a form that only its own client reads
        port = None
    if port is None:
        return url
    account = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{account}127.0.0.1:{port}"))


def _member(one: dict[str, Any]) -> Member:
    state, service = one["State"], _service(one)
    health = state.get("Health", {}).get("Status")
    words = f"{state['Status']}{f', {health}' if health and state['Running'] else ''}"
    said: dict[str, Any] = {}
    if service == "beat" and state["Running"]:
        told = run("docker", "exec", one["Id"], "sh", "-c", f'cat "$HEARTBEAT_FILE{TIMETABLE}"', capture_output=True).stdout
        with suppress(ValueError):
            said = json.loads(told)
    if not state["Running"]:
        words += f" ({state['ExitCode']})"
    node = f"celery@{one['Config']['Hostname']}" if service == "worker" else None
    return Member(service, words, state["Running"], node, said)


def _check_ports(services: dict[str, Any], containers: list[dict[str, Any]]) -> None:
    """Refuse before anything starts if a port is taken by somebody else."""
    own = {publisher["PublishedPort"] for container in containers for publisher in container.get("Publishers") or []}
    for name, service in services.items():
        for port in service.get("ports", []):
            number = int(port.get("published", 0))  # 0: any
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((port.get("host_ip") or "127.0.0.1", number))
                except OSError:
                    if number not in own:
                        variable = service.get("labels", {}).get(f"celery-kit.port.{port['target']}", "its variable in .env")
                        refuse(f"port {number} for {name} is in use; free it, or choose another: {variable}={number + 10_000}")
