"""The file for `docker stack deploy`, made of a stack's Compose files by tables of what a swarm has in place of each thing.

Passwords and certificates become secrets of the swarm, other files its configs. A swarm cannot change them: each name has a
hash of the content, so another content is another object, and the services that use it are replaced.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers.contract import ROLES
from celery_kit.operate.groups import role_of
from celery_kit.operate.stacks.docker import Facts
from celery_kit.operate.stacks.passwords import START
from celery_kit.operate.stacks.services import GROUP

#: The label of a stack's services, with its broker.
STACK = "celery-kit.stack"
#: The label of the node with the stack's data. Volumes are local to a node, so what has one runs there.
PLACE = "celery-kit.broker"
#: Where a server finds the passwords that it is given, by its KEY and the role: deploy/compose/keys.sh.
GIVEN = PurePosixPath("/run/secrets")
#: How services are replaced, by role. A worker gives its queues to the new one; of servers and beat there is one at a time.
ORDERS = {"worker": "start-first"}
#: Seconds for which a new container is watched, and before one that has exited starts again.
WATCHED, AGAIN = "20s", "2s"

#: Keys of a service that a swarm has too.
SAME = (
    "cap_add", "cap_drop", "command", "dns", "entrypoint", "environment", "healthcheck", "hostname", "image", "init", "labels",
    "logging", "networks", "read_only", "stop_grace_period", "stop_signal", "sysctls", "ulimits", "user", "working_dir",
)  # fmt: skip
#: Keys of a service that are limits in a swarm: by what name, and of which type.
LIMITS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "mem_limit": ("memory", str),
    "cpus": ("cpus", str),
    "pids_limit": ("pids", int),
}
#: Keys of a service with a function below, and those that a swarm has nothing for, with the reason why that may be so.
MADE = ("extra_hosts", "ports", "scale", "secrets", "tmpfs", "volumes")
LEFT = {
    "build": "images come from a registry",
    "cpu_shares": "a swarm has limits only",
    "depends_on": "clients try again until their servers answer",
    "env_file": "Compose has read it",
    "group_add": "a container has the passwords of its own roles alone",
    "profiles": "Compose has chosen them",
    "restart": "RESTART has it",
    "security_opt": "an option of each engine (docs/swarm.md)",
}
RESTART = {"condition": "any", "delay": AGAIN}


def stack(config: Facts, name: str, broker: str, objects: Mapping[str, str], elsewhere: bool) -> Facts:
    """The file for `docker stack deploy`: what Compose has read from its files, as a swarm has it.

    `objects`: the swarm's secrets with passwords, by KEY and role, as `broker.worker`. `elsewhere`: there are nodes for workers
    other than that of the servers. Refuses a key of a service that no table here knows.
    """
    stacked = _Stack(config, name, broker, objects, elsewhere)
    services = {key: stacked.service(key, one) for key, one in config["services"].items() if one.get("scale") != 0}
    networks = {  # servers' networks have no way out
        key: {"driver": "overlay", **({"internal": True} if one.get("driver_opts") else {})}
        for key, one in config["networks"].items()
    }
    volumes: Facts = {
        key: {} for key in config["volumes"] if any(key in map(_source, one["volumes"]) for one in services.values())
    }
    parts = {"networks": networks, "volumes": volumes, "secrets": stacked.secrets, "configs": stacked.configs}
    return {"services": services, **{key: part for key, part in parts.items() if part}}


class _Stack:
    """What the services of a stack take from it, and what they have added to it."""

    def __init__(self, config: Facts, name: str, broker: str, objects: Mapping[str, str], elsewhere: bool) -> None:
        self.config, self.name, self.broker, self.objects, self.elsewhere = config, name, broker, objects, elsewhere
        self.secrets: Facts = {}
        self.configs: Facts = {}

    def service(self, key: str, given: Facts) -> Facts:
        if unknown := sorted({*given} - {*SAME, *LIMITS, *MADE, *LEFT}):
            refuse(f"{key}: {unknown[0]} cannot be had in a swarm; leave it out of the Compose files")
        found = {word: given[word] for word in SAME if given.get(word) is not None}
        limits = {word: kind(given[old]) for old, (word, kind) in LIMITS.items() if float(given.get(old) or 0)}
        labels = given.get("labels") or {}
        found["deploy"] = {
            "mode": "replicated",
            "replicas": given.get("scale", 1),
            "endpoint_mode": "dnsrr",  # the other one needs IPVS of the kernel
            "resources": {"limits": limits},
            "restart_policy": RESTART,
            "placement": {"constraints": self._constraints(key)},
            "labels": {STACK: self.broker, **({GROUP: labels[GROUP]} if GROUP in labels else {})},
            **dict.fromkeys(("update_config", "rollback_config"), self._replacing(key)),
        }
        found["deploy"]["rollback_config"] = {**self._replacing(key), "failure_action": "pause"}
        if "extra_hosts" in given:
            found["extra_hosts"] = [one.replace("=", ":", 1) for one in given["extra_hosts"]]
        if key_of_server(given):
            if "metrics" in given["networks"]:  # a name of its address there resolves only once it is healthy
                found["environment"] = {**found["environment"], "METRICS_ADDRESS": "0.0.0.0"}
            found["environment"] = {word: value for word, value in found["environment"].items() if not _is_password(word)}
        if ports := [port for port in given.get("ports", []) if given.get("profiles")]:
            # On all addresses of the node: a swarm knows no other. So it is only pages with a password.
            found["ports"] = [
                {"target": port["target"], "published": int(port["published"]), "protocol": "tcp", "mode": "host"}
                for port in ports
            ]
        found["volumes"] = [*self._volumes(given), *map(_tmpfs, given.get("tmpfs", []))]
        found["configs"] = [self._config(one) for one in _binds(given) if not Path(one["source"]).is_dir()]
        found["secrets"] = [*self._given_secrets(given), *self._certificates(given), *self._passwords(given)]
        return {word: value for word, value in found.items() if value != [] or word == "volumes"}

    def _constraints(self, key: str) -> list[str]:
        if role_of(key) == "worker":
            return [f"node.labels.{PLACE} != true"] * self.elsewhere
        return [f"node.labels.{PLACE} == true"]

    @staticmethod
    def _replacing(key: str) -> Facts:
        order = ORDERS.get(role_of(key), "stop-first")
        return {"parallelism": 1, "order": order, "failure_action": "rollback", "monitor": WATCHED, "max_failure_ratio": 0}

    @staticmethod
    def _volumes(given: Facts) -> Iterator[Facts]:
        for one in given.get("volumes", []):
            if one["type"] == "volume" and one["source"] != "keys":
                yield {word: value for word, value in one.items() if value != {}}

    def _config(self, one: Facts) -> Facts:
        file = Path(one["source"])
        key = self._object(self.configs, file)
        return {"source": key, "target": one["target"], "mode": 0o555 if file.stat().st_mode & 0o111 else 0o444}

    def _certificates(self, given: Facts) -> Iterator[Facts]:
        for one in _binds(given):
            folder = Path(one["source"])
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if file.is_file() and file.suffix == ".pem":
                    key = self._object(self.secrets, file, f"{folder.name}-{file.name}")
                    yield {"source": key, "target": f"{one['target']}/{file.name}", "mode": 0o444}

    def _given_secrets(self, given: Facts) -> Iterator[Facts]:
        for one in given.get("secrets", []):
            key = self._object(self.secrets, Path(self.config["secrets"][one["source"]]["file"]), one["source"])
            yield {"source": key, "target": one["target"], "mode": 0o444}

    def _passwords(self, given: Facts) -> Iterator[Facts]:
        for key, target in password_files(self.config, given):
            self.secrets[key] = {"external": True, "name": self.objects[key]}
            yield {"source": key, "target": str(target), "mode": 0o444}

    def _object(self, objects: Facts, file: Path, key: str = "") -> str:
        key = key or file.name
        name = f"{self.name}_{key[:20]}-{hashed(file.read_bytes())}"
        objects[name] = {"name": name, "file": str(file).replace("$", "$$")}
        return name


def key_of_server(given: Facts) -> str:
    """The word by which a server's passwords are called, its KEY; empty: the service is no server of the kit."""
    starts = any(one["target"] == START for one in given.get("volumes", []))
    return str(given["environment"]["KEY"]) if starts else ""


def password_files(config: Facts, given: Facts) -> Iterator[tuple[str, PurePosixPath]]:
    """The passwords that a service reads, as `broker.worker`, each with its file there: all of a server, or its roles'."""
    if key := key_of_server(given):
        yield from ((f"{key}.{role}", GIVEN / f"{key}.{role}") for role in ROLES)
        return
    folder = next((one["target"] for one in given.get("volumes", []) if _source(one) == "keys"), None)
    groups = re.findall(r"(\w+)\) echo (\d+)", (ROOT / "deploy/compose/keys.sh").read_text())
    for role in [role for role, group in groups if group in given.get("group_add", [])] if folder else ():
        for key in filter(None, map(key_of_server, config["services"].values())):
            yield f"{key}.{role}", PurePosixPath(folder or "") / f"{key}.{role}"


def wanted(config: Facts) -> dict[str, str]:
    """The passwords of a stack's servers, by KEY and role, as `broker.worker`; empty: none was chosen, by a variable."""
    found: dict[str, str] = {}
    for one in config["services"].values():
        if key := key_of_server(one):
            chosen = {word: value for word, value in one["environment"].items() if _is_password(word) and value}
            admin = chosen.pop("ADMIN_PASSWORD", "")
            own = {"admin": admin, "operator": next(iter(chosen.values()), "")}
            found |= {f"{key}.{role}": own.get(role, "").replace("$$", "$") for role in ROLES}
    return found


def _is_password(variable: str) -> bool:
    return variable.endswith(("_PASS", "_PASSWORD"))


def _source(one: Facts) -> str:
    return str(one.get("source", "")) if one["type"] == "volume" else ""


def _binds(given: Facts) -> Iterator[Facts]:
    for one in given.get("volumes", []):
        if one["type"] == "bind":
            if not one.get("read_only"):
                refuse(f"{one['source']} cannot be written to in a swarm, where it is a copy; mount it read-only, or a volume")
            yield one


def _tmpfs(given: str) -> Facts:
    target, _, options = given.partition(":")
    size = re.search(r"size=(\d+)([kmg]?)", options)
    most = {"tmpfs": {"size": int(size[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[size[2]]}} if size else {}
    return {"type": "tmpfs", "target": target, **most}


def hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]
