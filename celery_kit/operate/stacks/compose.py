"""The stacks of containers, for the command line: `docker compose` on the files in the project's folder.

There is no state file: the engine knows what runs. A stack belongs to the checkout that started it. Its name has a hash of the
checkout's path. Its containers have the path in Compose's own label, and its volumes in a label of the kit's.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Unpack

import yaml

from celery_kit.base import times
from celery_kit.base.choices import TASK_TIME_LIMIT
from celery_kit.base.facts import Member
from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.observe.beat import TIMETABLE, timetable_in
from celery_kit.operate.groups import Group, longest, queues_of, role_of
from celery_kit.operate.stacks import certificates, passwords, registry, scaling
from celery_kit.operate.stacks.codebase import ABOUT, NOTED, About, Codebase, Started
from celery_kit.operate.stacks.docker import (
    Container,
    Facts,
    RunOptions,
    answered,
    ask,
    containers,
    content,
    last_line,
    make_volumes,
    run,
    volumes,
)
from celery_kit.operate.stacks.images import build_codebase, build_each, of_python, prepare, settings
from celery_kit.operate.stacks.ports import check_ports, from_here, mail_url, published, service_of
from celery_kit.operate.stacks.services import GROUP, written
from celery_kit.profile import Profile
from celery_kit.results import BACKENDS

WAIT_SECONDS = "180"
#: The name of every stack in former versions, when checkouts shared it.
FORMER_NAME = "celery-kit"
#: The variables that must be the same in all processes of a stack. Paths may differ.
SHARED = (
    "BROKER", "BACKEND", "POOL", "ENGINE", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "TASK_SERIALIZER", "ACCEPT_CONTENT",
    "TASK_TIME_LIMIT", "VISIBILITY_TIMEOUT", "MAX_DELIVERIES", "DELIVERY", "RESULT_EXPIRES", "TIMEZONE", "SMTP_HOST",
    "SMTP_PORT", "CELERY_WORKER_QUEUES", "QUEUE_VERSION", "SECURE",
)  # fmt: skip


def project_name() -> str:
    """The name of this checkout's stack: COMPOSE_PROJECT_NAME, or its folder's name and a hash of its path."""
    if given := settings().get("COMPOSE_PROJECT_NAME"):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", given):
            refuse(f"COMPOSE_PROJECT_NAME={given} is not allowed; small letters, digits, - and _, a letter or digit first")
        return given
    folder = _folder_name()
    named = folder if folder.startswith(FORMER_NAME) else f"{FORMER_NAME}-{folder}".rstrip("-_")
    return f"{named[:40]}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"


def _folder_name() -> str:
    """The name that Compose derives from this folder."""
    return re.sub(r"[^a-z0-9_-]", "", ROOT.name.lower()).lstrip("-_")


def _names() -> list[str]:
    """The names that this checkout's stack may have: from `make`, from Compose, and the name in former versions."""
    own = project_name()
    return [own] if settings().get("COMPOSE_PROJECT_NAME") else [own, _folder_name(), FORMER_NAME]


def _consumer_timeout(groups: Sequence[Group] = ()) -> dict[str, str]:
    """A time that Compose can't derive: when a broker takes a message from its worker, if tasks have no limit, or groups have
    limits of their own.
    """
    given, derived = settings(), times.CONSUMER_TIMEOUT
    own = given.get("TASK_TIME_LIMIT") or str(TASK_TIME_LIMIT)
    if given.get(derived.name) or (own != "0" and all(one.time_limit is None for one in groups)):
        return {}
    return {derived.name: str(derived.of(longest(groups, int(own))) * 1_000)}


class Compose:
    """This checkout's stack of one broker. Without a broker, it is whichever stack the checkout has.

    `project`: its name, of several stacks of this checkout.
    """

    def __init__(self, broker: str | None = None, project: str = "") -> None:
        self.file = BROKERS[broker].compose_file if broker else None
        self.hosts = BROKERS[broker].hosts if broker else ()
        self._named = (project,) if project else ()
        if project:
            self.project = project

    def _compose(
        self, *argv: str, env: Mapping[str, str] | None = None, **options: Unpack[RunOptions]
    ) -> subprocess.CompletedProcess[str]:
        return run("docker", "compose", "-p", self.project, *argv, env=env, **options)

    def _containers(self) -> list[Facts]:
        shown = ask("docker", "compose", "-p", self.project, "ps", "--all", "--format", "json").stdout
        return [json.loads(line) for line in shown.splitlines() if line.startswith("{")]

    @cached_property
    def project(self) -> str:
        """Its name: that of its containers, running ones first. Without containers, the name that they would get."""
        order = _names()
        mine = sorted(_own(), key=lambda one: (not one.runs, order.index(one.project)))
        return mine[0].project if mine else order[0]

    def _mine(self) -> list[Container]:
        return [one for one in _own(*self._named) if one.project == self.project and one.file == (self.file or one.file)]

    def running(self) -> bool:
        """Whether any of its containers is running."""
        return any(one.runs for one in self._mine())

    def exists(self) -> bool:
        """Whether there is anything to take down, including stopped containers."""
        return bool(self._mine())

    def data(self) -> list[str]:
        """The names of its volumes; with a broker, only those in the broker's file.

        Refuses those of another checkout.
        """
        mine = volumes(self.project)
        if theirs := [one.owner for one in mine if one.owner not in ("", str(ROOT)) and Path(one.owner).is_dir()]:
            refuse(f"the data of the stack {self.project} is of the checkout in {theirs[0]}; give another COMPOSE_PROJECT_NAME")
        file = yaml.safe_load((ROOT / self.file).read_text())["volumes"] if self.file else {one.key: {} for one in mine}
        return [one.name for one in mine if one.key in file]

    def up(
        self, groups: Sequence[Group], backend: str, codebase: Codebase | None, profiles: Sequence[str] = (), pins: str = ""
    ) -> Started:
        """Build missing images, start the stack and wait until every service is healthy. Refuses if that fails.

        `pins`: a file of `make push`, whose images are used; nothing is built then.
        """
        images = registry.of_services(pins, groups, monitored=bool(profiles))
        os.environ |= {"COMPOSE_PROFILES": ",".join(profiles)} if profiles else {}
        prepare()
        _check_cores(groups)
        former = not self.data() and any(not one.owner for one in volumes(FORMER_NAME))
        own = _own()
        if theirs := [one for one in containers() if one.project == self.project and one not in own]:
            refuse(f"{theirs[0].owner} has the name {self.project}; give another COMPOSE_PROJECT_NAME")
        first, grouped = groups[0], bool(groups[0].name)
        config, files, environ = self.config(groups, backend, codebase, profiles, images)
        services = config["services"]
        scaling.forget(self.project)
        about, named = About(), ("-p", self.project, *files)
        if images:
            registry.pull(images.values())
        elif grouped:
            registry.of_versions(groups, {name: str(service.get("image")) for name, service in services.items()})
            pools = list(dict.fromkeys(one.pool for one in groups if not one.version))
            build_each(named, pools, codebase, environ, monitored=bool(profiles))
        elif codebase:
            build_codebase(named, first.pool, codebase, environ, monitored=bool(profiles))
        if grouped or codebase:
            about = _about(codebase, services[first.service], *["grouped"] * grouped)
        check_ports(services, self._containers())
        make_volumes(self.project, config)
        how = ["--no-build"] if grouped or images else ["--build"]
        how += [] if grouped else ["--scale", f"{first.service}={first.scale[0]}"]
        started = self._compose(
            *files, "up", "--detach", *how, "--remove-orphans", "--wait", "--wait-timeout", WAIT_SECONDS, *services, env=environ
        )
        if started.returncode:
            self._compose("logs", "--no-color", "--tail", "15")
            ended = self._compose("down", capture_output=True)
            end = f"could not be taken down: {last_line(ended.stderr)}" if ended.returncode else "was taken down again"
            refuse(f"the stack did not become healthy; its last words stand above, and it {end}")
        scaling.note(self.project, self.file or "", config)
        places = [
            f"{name:<11}127.0.0.1:{port['published']} (port {port['target']} in the stack)"
            for name, service in services.items()
            for port in service.get("ports", [])
            if "published" in port
        ]
        if former:
            places.append(f"older data: of a stack {FORMER_NAME}; to go on with it, COMPOSE_PROJECT_NAME={FORMER_NAME} in .env")
        return Started(places, about)

    def config(
        self,
        groups: Sequence[Group],
        backend: str,
        codebase: Codebase | None,
        profiles: Sequence[str],
        images: Mapping[str, str],
    ) -> tuple[Facts, list[str], dict[str, str]]:
        """The stack as Compose reads it from its files, with the options and the environment that name these files.

        Makes the certificates and the password that are missing. Refuses settings that Compose refuses.
        """
        if profiles:
            os.environ |= {"COMPOSE_PROFILES": ",".join(profiles), "WORKER_SEND_TASK_EVENTS": "1"}
            passwords.monitor_password()
        os.environ |= certificates.variables(servers=(*self.hosts, "results"))
        environ = {**os.environ, "POOL": groups[0].pool, "BACKEND": backend, **of_python(), **_consumer_timeout(groups)}
        environ |= codebase.environ() if codebase else {}
        files = ["--project-directory", str(ROOT), "-f", self.file or ""]
        files += ["-f", str(written(self.project, self.file or "", groups, images))] if groups[0].name or images else []
        shown = ask("docker", "compose", "-p", self.project, *files, "config", "--format", "json", env=environ)
        if shown.returncode:
            refuse(f"the stack's settings cannot be used: {last_line(shown.stderr)}")
        config: Facts = answered(shown)
        if not BACKENDS[backend].has_server and "results" in config["services"]:
            del config["services"]["results"]
        return config, files, environ

    def down(self, volumes: bool) -> str:
        """Take it down. Returns what was done, in words; refuses if it fails."""
        data, there = self.data() if volumes else [], self.exists()
        if there and self._compose("down", "--remove-orphans").returncode:
            refuse(f"the stack {self.project} could not be taken down; the reason stands above, and its data stays")
        if data and run("docker", "volume", "rm", *data, stdout=subprocess.DEVNULL).returncode:
            refuse(f"the data of the stack {self.project} could not be deleted; the reason stands above")
        return f"stack {self.project}: {'stopped' if there else 'did not run'}; its data {'is deleted' if volumes else 'stays'}"

    def turn(self, command: str, role: str) -> int:
        """Start or stop the containers of a role, a worker's after its tasks. Returns how many. Refuses if that fails."""
        services = [name for one in self.inspected() if role_of(name := service_of(one)) == role]
        if services and self._compose(command, *sorted(set(services)), capture_output=True).returncode:
            refuse(f"the {role} of the stack {self.project} did not {command}; 'docker compose -p {self.project} ps' shows it")
        return len(services)

    def python(self, role: str, *argv: str, **options: Unpack[RunOptions]) -> subprocess.CompletedProcess[str]:
        """Run `python -m …` inside the stack, on the task codebase, with the accounts of a role.

        A producer runs in a worker, which may do all that it may. `options` are those of subprocess.run.
        """
        inspected = self.inspected()
        mine = {service_of(one): one for one in inspected if one["State"]["Running"] and _is_mine(one)}
        if not mine:
            refuse("neither worker nor beat of the stack runs; 'make ps' shows what does, 'make up' starts it")
        service = min(mine, key=lambda name: (role_of(name) != "worker", name))
        one = mine[service]
        if role != "producer" or role_of(service) != "worker":
            return passwords.beside(one, passwords.accounts(inspected, role), *argv, **options)
        terminal = [] if sys.stdin.isatty() and not options else ["-T"]
        files = [
            f"--env={name}={PurePosixPath(file).with_suffix('.producer')}"
            for name, _, file in (line.partition("=") for line in one["Config"]["Env"])
            if name in ("BROKER_PASSWORD_FILE", "RESULTS_PASSWORD_FILE")
        ]
        return self._compose("exec", *terminal, *files, service, "python", "-m", *argv, **options)

    def codebase(self, inspected: list[Facts]) -> Codebase | None:
        """The codebase that it runs, as given to `up`. None: this repository's own app."""
        labels: dict[str, str] = next((one["Config"]["Labels"] for one in _workers(inspected)), {})
        note = {name: labels.get(f"celery-kit.{name}") or "" for name in NOTED}
        return Codebase.from_note(note) if note["source"] else None

    def groups(self, inspected: list[Facts]) -> list[Group]:
        """The worker groups that it runs, as given to `up`, by name. Empty without a table of groups."""
        notes = {note for one in _workers(inspected) if (note := one["Config"]["Labels"].get(GROUP))}
        return sorted(map(Group.from_note, notes), key=lambda one: one.name)

    def inspected(self) -> list[Facts]:
        """The engine's description of each container of the stack, including exited ones."""
        ids = [one.id for one in self._mine()]
        return list(answered(ask("docker", "inspect", *ids))) if ids else []

    def environment(self, inspected: list[Facts], role: str) -> dict[str, str]:
        """The environment of a process of this machine in a role: a worker's settings, with the published ports."""
        ours = min(filter(_is_mine, inspected), key=service_of, default=None)  # beat, if it is there: it is of no group
        if ours is None:
            refuse("the stack has neither worker nor beat; 'make ps' shows what it has, 'make up' starts it again")
        theirs = dict(line.split("=", 1) for line in ours["Config"]["Env"] if "=" in line)
        own = tuple(room.variables for room in BROKERS.values() if room.variables)
        environ = {name: value for name, value in theirs.items() if value and (name in SHARED or name.startswith(own))}
        if groups := self.groups(inspected):
            environ["CELERY_WORKER_QUEUES"] = ",".join(queues_of(groups))
        ports = published(inspected)
        smtp = ports.get((theirs.get("SMTP_HOST", ""), int(theirs.get("SMTP_PORT") or 0)))
        environ |= {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(smtp)} if smtp else {}
        environ["SMS_GATEWAY_URL"] = from_here(theirs.get("SMS_GATEWAY_URL", ""), ports)
        environ |= {"TLS_FOLDER": str(certificates.FOLDER / "client")} if environ.get("SECURE") else {}
        profile = Profile.from_environ(environ | passwords.accounts(inspected, role))
        environ["CELERY_BROKER_URL"] = from_here(profile.broker_url, ports)
        environ["CELERY_RESULT_BACKEND"] = from_here(profile.result_backend, ports)
        broker = profile.broker
        named = {
            name: [ports[host, port] for host in broker.hosts if (host, port) in ports] for port, name in broker.ports.items()
        }
        near = [f"{name}:{port}=127.0.0.1:{here}" for (name, port), here in sorted(ports.items()) if name in broker.nodes]
        environ |= {"ADDRESSES": ",".join(near)} if near else {}
        return environ | {name: ",".join(map(str, found)) for name, found in named.items() if found}

    def passwords(self, inspected: list[Facts]) -> dict[str, str]:
        """What a person needs to log in: the servers' password of `admin`, the mail catcher's address. Empty if it is down."""
        up = {service_of(one): one["Id"] for one in inspected if one["State"]["Running"]}
        admin, mail = passwords.accounts(inspected, "admin"), content(up.get("mail"), "/tmp/password")
        return {
            "ADMIN_PASSWORD": admin.get("BROKER_PASSWORD", "").partition("\n")[0],
            "MAIL_URL": mail and mail_url(published(inspected)["mail", 8025], mail),
        }

    def reload(self) -> list[str]:
        """Have its servers read their certificates again, and return their names. Refuses if one does not."""
        return certificates.reload(one for one in self.inspected() if one["State"]["Running"])

    def seen(self, inspected: list[Facts]) -> Callable[[str], str]:
        """A function that translates a server's address in the stack into its address on this machine."""
        ports = published(inspected)
        return lambda url: from_here(url, ports)

    def members(self, inspected: list[Facts]) -> list[Member]:
        """Its containers."""
        return [_member(one) for one in inspected]

    def logs(self, follow: bool, group: Group | None = None) -> None:
        """Print the last lines of all logs, or of a group's workers; with `follow`, go on until Ctrl-C."""
        self._compose("logs", *(["--follow"] if follow else ["--tail", "100"]), *([group.service] if group else []))

    def ps(self) -> None:
        """Print its containers."""
        self._compose("ps", "--all")


def stacks_of(broker: str) -> list[Compose]:
    """The running stacks of a broker that this checkout has, whatever their names."""
    file = BROKERS[broker].compose_file
    return [Compose(broker, name) for name in sorted({one.project for one in containers() if _runs_here(one, file)})]


def _runs_here(one: Container, file: str | None) -> bool:
    return one.runs and one.folder == ROOT and one.file == file


def _is_mine(one: Facts) -> bool:
    return role_of(service_of(one)) in ("worker", "beat")


def _about(codebase: Codebase | None, service: Facts, *words: str) -> About:
    """Describe an app in its image. `words`: of the command. Passwords are variables: no list of processes shows them."""
    environ = {name: str(value) for name, value in service["environment"].items() if value}
    environ |= dict.fromkeys(("BROKER_PASSWORD", "RESULTS_PASSWORD"), "unknown")  # nothing is connected
    names = [word for name in environ for word in ("--env", name)]
    # With SECURE, an address names the folder of certificates.
    mounts = [f"--volume={one['source']}:{one['target']}:ro" for one in service["volumes"] if one["type"] == "bind"]
    command = ("docker", "run", "--rm", "--network", "none", *names, *mounts, service["image"], *ABOUT, *words)
    return About.of(codebase, run(*command, env={**os.environ, **environ}, capture_output=True))


def _check_cores(groups: Sequence[Group]) -> None:
    """Refuse a group whose workers have more cores than the engine's machine has, as the engine would."""
    said = ask("docker", "info", "--format", "{{.NCPU}}").stdout.strip() if any(one.cpus for one in groups) else ""
    cores = int(said) if said.isdecimal() else math.inf
    for one in groups:
        if one.cpus and one.cpus > cores:
            refuse(f"group {one.name}: cpus = {one.cpus:g} is more than this machine has; {cores:g} at most")


def _workers(inspected: list[Facts]) -> list[Facts]:
    return [one for one in inspected if role_of(service_of(one)) == "worker"]


def _own(*projects: str) -> list[Container]:
    """This checkout's containers. With COMPOSE_PROJECT_NAME, also those of a folder that is missing: it has moved here.

    `projects`: names of stacks, if they are not those that this checkout's stack may have now.
    """
    given, names = settings().get("COMPOSE_PROJECT_NAME"), projects or _names()
    found = [one for one in containers() if one.project in names]
    return [one for one in found if one.folder == ROOT or (given and not one.folder.exists())]


def _member(one: Facts) -> Member:
    state, service = one["State"], service_of(one)
    health = state.get("Health", {}).get("Status")
    words = f"{state['Status']}{f', {health}' if health and state['Running'] else ''}"
    said, leads = timetable_in("")
    if service == "beat" and state["Running"]:
        said, leads = timetable_in(ask("docker", "exec", one["Id"], "sh", "-c", f'cat "$HEARTBEAT_FILE{TIMETABLE}"').stdout)
    if not state["Running"]:
        words += f" ({state['ExitCode']})"
    group = json.loads(one["Config"]["Labels"].get(GROUP, "{}")).get("name", "")
    role = role_of(service)
    node = f"{group or 'celery'}@{one['Config']['Hostname']}" if role == "worker" else None
    return Member(role, words, state["Running"], node, said, group, leads)
