"""`make k8s-secrets`: the Secrets that a rendered folder names, for `kubectl create -f -`. They are written to no file.

A server's users have random passwords, a Secret for each user. `kubectl create` leaves Secrets alone that are there.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path

from celery_kit.brokers.contract import ROLES
from celery_kit.operate.stacks import certificates
from celery_kit.operate.stacks.docker import Facts

SERVERS = ("broker", "results")
#: The keys of a user's Secret: `account` is the file that the kit's processes read, a password and its user.
ACCOUNT = ("account", "username", "password")
#: By Secret, its keys. `environment`: what the app's own code reads, and so any.
SECRETS: dict[str, tuple[str, ...] | None] = {
    **{f"{server}-{role}": ACCOUNT for server in SERVERS for role in ROLES},
    "monitor": ("username", "password"),
    "client-tls": ("ca.pem", "client.pem"),
    # A certificate with its key, by the names of the kit and by those that operators look for.
    "server-tls": ("ca.pem", "server.pem", "ca.crt", "tls.crt", "tls.key"),
    "environment": None,
}


def user(role: str) -> str:
    """A role's user on the servers."""
    return "kit" if role == "operator" else role


def manifest(namespace: str, secure: bool, environment: Mapping[str, str | None]) -> Facts:
    """The Secrets, as a list of Kubernetes' objects. `secure`: also certificates, which are made if they are missing.

    `environment`: the variables of the app's own code. Refuses certificates that cannot be made or read.
    """
    found = {f"{server}-{role}": _account(role) for server in SERVERS for role in ROLES}
    found["monitor"] = {"username": "kit", "password": secrets.token_urlsafe(18)}
    if secure:
        certificates.say(certificates.ensure())
        for side, file in certificates.FILES.items():
            found[f"{side}-tls"] = _files(certificates.FOLDER / side, file)
    if environment:
        found["environment"] = {name: value for name, value in environment.items() if value is not None}
    return {"apiVersion": "v1", "kind": "List", "items": [_secret(name, namespace, data) for name, data in found.items()]}


def _account(role: str) -> dict[str, str]:
    password = secrets.token_urlsafe(24)
    return {"account": f"{password}\n{user(role)}\n", "username": user(role), "password": password}


def _files(folder: Path, file: str) -> dict[str, str]:
    names = {"ca.pem": "ca.pem", "ca.crt": "ca.pem", file: file, "tls.crt": file, "tls.key": file}
    given = {name: folder / of for name, of in names.items() if name in (SECRETS[f"{folder.name}-tls"] or ())}
    return {name: path.read_text() for name, path in given.items() if path.exists()}


def _secret(name: str, namespace: str, data: Mapping[str, str]) -> Facts:
    place = {"namespace": namespace} if namespace else {}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, **place},
        "type": "Opaque",
        "stringData": dict(data),
    }
