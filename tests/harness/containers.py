"""Containers of a test session: the engine that runs them, their label, their removal."""

from contextlib import suppress

import docker
import pytest

from testbed.stack import SESSION

LABEL = "celery-kit.test-session"
#: The labels with which each container, network and volume of this session is created.
LABELS = {LABEL: SESSION}


def require_engine() -> None:
    """End the test session if no Docker engine answers."""
    try:
        docker.from_env().ping()
    except docker.errors.DockerException:
        pytest.exit("no Docker engine answers, and these tests need one: run 'make engine' first", returncode=2)


def clean() -> None:
    """Remove all containers, networks and volumes of this session, from all of its processes."""
    client = docker.from_env()
    found = {"filters": {"label": f"{LABEL}={SESSION}"}}
    for container in client.containers.list(all=True, **found):
        with suppress(docker.errors.APIError):
            container.remove(force=True, v=True)
    for network in client.networks.list(**found):
        with suppress(docker.errors.APIError):
            network.remove()
    for volume in client.volumes.list(**found):
        with suppress(docker.errors.APIError):
            volume.remove(force=True)
