"""Ports of this machine: which ones stacks publish, which are in use, and the addresses of servers on them."""

import json
import socket
from contextlib import suppress
from urllib.parse import quote, urlsplit, urlunsplit

from celery_kit.base.refusals import refuse
from celery_kit.brokers import BROKERS
from celery_kit.operate.stacks.docker import Facts, ask, port_holder


def published_ports() -> dict[str, int]:
    """The ports that the stacks would publish, by the variables that change them. Empty if there is no Docker client."""
    found = {}
    for broker in BROKERS.values():
        shown = ask("docker", "compose", "-f", broker.compose_file or "", "config", "--format", "json")
        services: Facts = {}
        with suppress(ValueError):
            services = json.loads(shown.stdout)["services"]
        for service in services.values():
            for port in service.get("ports", []):
                if variable := service.get("labels", {}).get(f"celery-kit.port.{port['target']}"):
                    found[str(variable)] = int(port["published"])
    return found


def service_of(one: Facts) -> str:
    """The name of a container's service, from `docker inspect`; empty if it is not Compose's."""
    return str(one["Config"]["Labels"].get("com.docker.compose.service", ""))


def published(inspected: list[Facts]) -> dict[tuple[str, int], int]:
    """The published ports of this machine, by a container's name in the stack and its port there."""
    ports = {}
    for one in inspected:
        aliases = {alias for network in one["NetworkSettings"]["Networks"].values() for alias in network["Aliases"] or []}
        bound = one["NetworkSettings"]["Ports"] or one["HostConfig"]["PortBindings"] or {}
        for port, places in bound.items():
            for place in places or []:
                for name in aliases | {service_of(one)}:
                    ports[name, int(port.partition("/")[0])] = int(place["HostPort"])
    return ports


def from_here(url: str, ports: dict[tuple[str, int], int]) -> str:
    """A URL, or several with `;` between them, with a service's name replaced by its address on this machine."""
    return ";".join(_address(one, ports) for one in url.split(";"))


def _address(url: str, ports: dict[tuple[str, int], int]) -> str:
    parts = urlsplit(url)
    try:
        port = ports.get((parts.hostname or "", parts.port or 0))
    except ValueError:  # not a port: only the server's own client understands this URL
        port = None
    if port is None:
        return url
    account = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{account}127.0.0.1:{port}"))


def mail_url(port: int, password: str) -> str:
    """The address of the mail catcher's page on this machine, with its user and password."""
    return f"http://kit:{quote(password, safe='')}@127.0.0.1:{port}/"


def check_ports(services: Facts, containers: list[Facts]) -> None:
    """Refuse, before anything starts, if another program uses a port."""
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
                        by = (holder := port_holder(number)) and f" by {holder}"
                        refuse(
                            f"port {number} for {name} is in use{by}; free it, or choose another: {variable}={number + 10_000}"
                        )
