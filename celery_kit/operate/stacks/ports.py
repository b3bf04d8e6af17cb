"""Ports of this machine: those that stacks publish, those that are taken, and servers' addresses by them."""

import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from celery_kit.base.refusals import refuse
from celery_kit.brokers import BROKERS
from celery_kit.operate.stacks.docker import ask, port_holder


def published_ports() -> dict[str, int]:
    """The ports that the stacks would publish, by the variables that move them; empty where no engine can tell."""
    found = {}
    for broker in BROKERS.values():
        shown = ask("docker", "compose", "-f", broker.compose_file or "", "config", "--format", "json")
        services: dict[str, Any] = {}
        with suppress(ValueError):
            services = json.loads(shown.stdout)["services"]
        for service in services.values():
            for port in service.get("ports", []):
                if variable := service.get("labels", {}).get(f"celery-kit.port.{port['target']}"):
                    found[str(variable)] = int(port["published"])
    return found


def service_of(one: dict[str, Any]) -> str:
    return str(one["Config"]["Labels"].get("com.docker.compose.service", ""))


def published(inspected: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
    """By each name that a container answers to in the stack, and its port: the port of this machine."""
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
    """A URL that names a role, with this machine's address of it; others stay as they are. Of several: each."""
    return ";".join(_address(one, ports) for one in url.split(";"))


def _address(url: str, ports: dict[tuple[str, int], int]) -> str:
    parts = urlsplit(url)
    try:
        port = ports.get((parts.hostname or "", parts.port or 0))
    except ValueError:  # no port: it is of a form that only its own client reads
        port = None
    if port is None:
        return url
    account = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{account}127.0.0.1:{port}"))


def check_ports(services: dict[str, Any], containers: list[dict[str, Any]]) -> None:
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
                        by = (holder := port_holder(number)) and f" by {holder}"
                        refuse(
                            f"port {number} for {name} is in use{by}; free it, or choose another: {variable}={number + 10_000}"
                        )
