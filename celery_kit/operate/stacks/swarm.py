"""`make stack`: this checkout's stack on the Docker Swarm that the engine manages. swarm_file.py has what it is made of."""

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.operate.groups import Group
from celery_kit.operate.stacks import registry
from celery_kit.operate.stacks.codebase import Codebase
from celery_kit.operate.stacks.compose import Compose
from celery_kit.operate.stacks.docker import Facts, answered, ask, last_line, run
from celery_kit.operate.stacks.passwords import START
from celery_kit.operate.stacks.services import GROUP
from celery_kit.operate.stacks.swarm_file import PLACE, STACK, hashed, stack, wanted

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,29}")
#: Docker's own label of what belongs to a stack, and ours on secrets that have a password.
NAMESPACE, PASSWORD = "com.docker.stack.namespace", "celery-kit.password"
#: Seconds to wait until a stack is up, which includes pulling its images; for how long it must stay so; and after which why it
#: is not up is printed.
PATIENCE, STEADY, SLOW = 600.0, 6.0, 30.0
#: How often the swarm is asked for its objects: a busy engine may lose an answer.
TRIES = 3
UNTOLD = "no container reported an error"
#: Base images that were built on this machine, where no registry answers.
STANDINS = "celery-kit/"


def check(name: str) -> None:
    """Refuse a stack's name that is not allowed, and an engine that does not manage a swarm."""
    if not NAME.fullmatch(name):
        refuse(f"STACK={name} is not allowed; small letters, digits and -, a letter or digit first, 30 at most")
    said = ask("docker", "info", "--format", "{{json .Swarm}}")
    if said.returncode or not answered(said).get("ControlAvailable"):
        refuse("this engine manages no swarm; 'docker swarm init' makes one, DOCKER_HOST names another engine (docs/swarm.md)")


def deploy(
    name: str,
    broker: str,
    groups: Sequence[Group],
    backend: str,
    codebase: Codebase | None,
    profiles: Sequence[str],
    pins: str,
    renew: bool = False,
) -> list[str]:
    """Start a stack, or replace what has changed of it, and wait until all of it is healthy. Gives a line for each service.

    `renew`: with new passwords. Refuses if a service does not become healthy; a swarm then takes the former one again.
    """
    images = registry.of_services(pins, groups, monitored=bool(profiles))
    if theirs := [one for one in _services(name) if one["Spec"]["Labels"].get(STACK) != broker]:
        has = theirs[0]["Spec"]["Labels"].get(STACK)
        runs = f"a stack {name} runs" + (f" with BROKER={has}" if has else ", and it is not of the kit")
        refuse(f"{runs}; give another STACK, or take it down first{f': make stack DOWN=1 STACK={name}' if has else ''}")
    compose = Compose(broker)
    compose.project = name
    config, _, _ = compose.config(groups, backend, codebase, profiles, images)
    for service, one in config["services"].items():
        if one["image"].startswith(STANDINS):
            refuse(f"{service}: no other node has the image {one['image']}; push it, and name it in .env (docs/swarm.md)")
    if not groups[0].name:
        config["services"]["worker"]["scale"] = groups[0].scale[0]
    objects = _passwords(name, wanted(config), renew)
    made = stack(config, name, broker, objects, elsewhere=_place())
    file = ROOT / ".kit/stacks" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made, indent=2))
    words = ("--prune", "--with-registry-auth", "--resolve-image", "changed", "--detach=true", "-c", str(file), name)
    done = run("docker", "stack", "deploy", *words, capture_output=True)
    if done.returncode:
        refuse(f"the stack {name} could not be deployed: {last_line(done.stderr or done.stdout)}")
    _wait(name)
    _sweep(name)
    return lines(name)


def remove(name: str) -> str:
    """Take a stack down, and wait until its containers are gone. Its data stays, in volumes of its node. Gives it in words."""
    if not (services := _services(name)):
        return f"no stack {name} runs in this swarm"
    if any(STACK not in one["Spec"]["Labels"] for one in services):
        refuse(f"the stack {name} is not of the kit; 'docker stack rm {name}' takes it down")
    done = run("docker", "stack", "rm", name, capture_output=True)
    if done.returncode:
        refuse(f"the stack {name} could not be taken down: {last_line(done.stderr or done.stdout)}")
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and _left(name):
        time.sleep(0.5)
    return f"stack {name}: stopped; its data stays, in volumes of the node with the label {PLACE}"


def refuse_unless_there(name: str) -> None:
    """Refuse the name of no stack that runs."""
    if not any(STACK in one["Spec"]["Labels"] for one in _services(name)):
        refuse(f"no stack {name} of the kit runs in this swarm; 'make stack PINS=pins.json' starts one")


def look(name: str) -> list[str]:
    """The lines of a stack that runs, and then, if this engine has its beat, those of `make status`. Changes nothing."""
    refuse_unless_there(name)
    words = ("--filter", f"label={NAMESPACE}={name}", "--format", '{{.ID}}={{.Label "com.docker.swarm.service.name"}}')
    here = {service: one for one, _, service in (line.partition("=") for line in ask("docker", "ps", *words).stdout.split())}
    if not (beat := here.get(f"{name}_beat")):
        return lines(name)
    accounts = {}
    for role, services in (("BROKER", ("broker",)), ("RESULTS", ("results", "broker"))):
        server = next((here[f"{name}_{one}"] for one in services if f"{name}_{one}" in here), "")
        accounts[f"{role}_PASSWORD"] = ask("docker", "exec", server, START, "account", "operator").stdout.strip()
    given = [
        word for variable in accounts for word in ("--env", variable)
    ]  # without their values, which a list of processes has
    done = ask("docker", "exec", *given, beat, "python", "-m", "celery_kit.operate.look.status", env={**os.environ, **accounts})
    said = (done.stdout or done.stderr).splitlines()
    return [*lines(name), "", *(line for line in said if not line.startswith("beat "))]  # which only the lines above know


class Service(NamedTuple):
    """A service of a stack: how many of its containers run, of how many, on which nodes, and a group's pool and queues."""

    name: str
    running: int
    wanted: int
    nodes: list[str]
    pool: str | None
    queues: list[str]


def services(name: str) -> Iterator[Service]:
    """What runs of a stack."""
    tasks = _running(name)
    for one in _services(name):
        labels, nodes = one["Spec"]["Labels"], tasks.get(one["Spec"]["Name"], [])
        group = Group.from_note(labels.get(GROUP) or "{}") if GROUP in labels else None
        pool, queues = (group.pool, [*group.queues]) if group else (None, [])
        yield Service(one["Spec"]["Name"], len(nodes), _replicas(one), sorted(set(nodes)), pool, queues)


def lines(name: str) -> list[str]:
    """A line for each service of a stack."""
    rows = [("service", "running", "nodes", "pool", "queues")]
    for one in services(name):
        where = ", ".join(one.nodes) or "-"
        rows.append((one.name, f"{one.running} of {one.wanted}", where, one.pool or "", ",".join(one.queues)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _inspected(kind: str, *words: str) -> list[Facts]:
    """The swarm's description of its objects of a kind. `words`: which ones, as options of `docker KIND ls`.

    Refuses if they cannot be listed: none must not be taken for what was not told.
    """
    tries, listed = 1, ask("docker", kind, "ls", "--quiet", *words)
    while listed.returncode and tries < TRIES:
        time.sleep(1)
        tries, listed = tries + 1, ask("docker", kind, "ls", "--quiet", *words)
    if listed.returncode:
        refuse(f"the swarm did not list its {kind}s: {last_line(listed.stderr or listed.stdout)}")
    ids = listed.stdout.split()
    return list(answered(ask("docker", kind, "inspect", *ids))) if ids else []


def _services(name: str) -> list[Facts]:
    return sorted(_inspected("service", "--filter", f"label={NAMESPACE}={name}"), key=lambda one: str(one["Spec"]["Name"]))


def _replicas(service: Facts) -> int:
    return int(service["Spec"]["Mode"].get("Replicated", {}).get("Replicas", 0))


def _running(name: str) -> dict[str, list[str]]:
    """By service, the nodes of its running containers, one for each."""
    shown = ask("docker", "stack", "ps", name, "--filter", "desired-state=running", "--format", "{{json .}}").stdout
    found: dict[str, list[str]] = {}
    for one in map(json.loads, shown.splitlines()):
        if one["CurrentState"].startswith("Running"):
            found.setdefault(one["Name"].rpartition(".")[0], []).append(one["Node"])
    return found


def _left(name: str) -> bool:
    """Whether containers of a stack that was removed are still there. Those of a node that is down stay listed."""
    ready = {one["Description"]["Hostname"] for one in _inspected("node") if one["Status"]["State"] == "ready"}
    return bool(ready & {*ask("docker", "stack", "ps", "--format", "{{.Node}}", name).stdout.split()})


def _place() -> bool:
    """See to it that one node has the label for the servers. Gives whether there are others, which are for workers."""
    nodes = _inspected("node")
    mine = [one for one in nodes if one["Spec"]["Labels"].get(PLACE) == "true"]
    if len(mine) > 1:
        names = ", ".join(one["Description"]["Hostname"] for one in mine)
        refuse(f"the nodes {names} have the label {PLACE}=true, and data is on one: docker node update --label-rm {PLACE} NODE")
    if not mine:
        own = ask("docker", "info", "--format", "{{.Swarm.NodeID}}").stdout.strip()
        mine = [one for one in nodes if one["ID"] == own]
        done = run("docker", "node", "update", "--label-add", f"{PLACE}=true", own, capture_output=True)
        if done.returncode or not mine:
            refuse(f"this node could not get the label {PLACE}: {last_line(done.stderr)}")
        print(f"node {mine[0]['Description']['Hostname']} has the label {PLACE}=true now: it has the data", file=sys.stderr)
    active = [one for one in nodes if one["Status"]["State"] == "ready" and one["Spec"]["Availability"] == "active"]
    return any(one["ID"] != mine[0]["ID"] for one in active)


def _passwords(name: str, wanted: Mapping[str, str], renew: bool) -> dict[str, str]:
    """The swarm's secrets with the passwords, by KEY and role; makes those that are missing. They are stored nowhere else."""
    there = {}
    for one in sorted(_inspected("secret", "--filter", f"label={NAMESPACE}={name}"), key=lambda one: str(one["CreatedAt"])):
        there[one["Spec"]["Labels"].get(PASSWORD)] = one["Spec"]["Name"]
    found = {}
    for key, chosen in wanted.items():
        content = f"{chosen or secrets.token_urlsafe(24)}\n{key.partition('.')[2]}\n"
        found[key] = f"{name}_{key}-{hashed(content.encode())}"
        if not chosen and key in there and not renew:
            found[key] = there[key]
        if found[key] not in there.values():
            labels = ("--label", f"{NAMESPACE}={name}", "--label", f"{PASSWORD}={key}")
            done = run("docker", "secret", "create", *labels, found[key], "-", input=content, capture_output=True)
            if done.returncode:
                refuse(f"the password {key} could not be stored in the swarm: {last_line(done.stderr)}")
    return found


def _sweep(name: str) -> None:
    """Remove secrets and configs that no service of the stack has, neither now nor when a swarm takes the former one again."""
    used = json.dumps(_services(name))
    for kind in ("secret", "config"):
        for one in _inspected(kind, "--filter", f"label={NAMESPACE}={name}"):
            if one["ID"] not in used:
                run("docker", kind, "rm", one["ID"], capture_output=True)


def _wait(name: str) -> None:
    """Wait until each service has all of its containers, healthy, and none is being replaced. Refuses if one fails.

    Prints errors of containers meanwhile: the swarm starts others.
    """
    began = time.monotonic()
    up: float | None = None
    said = {_why(one["Spec"]["Name"]) for one in _services(name)}  # of what was before
    while up is None or time.monotonic() - up < STEADY:
        services, tasks = _services(name), _running(name)
        for one in services:
            service, state = one["Spec"]["Name"], (one.get("UpdateStatus") or {}).get("State", "")
            if state in ("paused", "rollback_paused", "rollback_completed"):
                now = "the former one runs again" if state == "rollback_completed" else f"it is {state.replace('_', ' ')}"
                refuse(f"{service}: the new one did not become healthy ({_why(service) or UNTOLD}); {now}")
        late = [
            one["Spec"]["Name"]
            for one in services
            if (one.get("UpdateStatus") or {}).get("State", "completed") != "completed"
            or len(tasks.get(one["Spec"]["Name"], [])) != _replicas(one)
        ]
        late = late if services else [name]  # a busy engine may lose an answer
        up = None if late else up or time.monotonic()
        if late and time.monotonic() - began > PATIENCE:
            words = f"{late[0]} is not up after {PATIENCE:.0f} s ({_why(late[0]) or UNTOLD})"
            refuse(f"{words}; 'docker service ps --no-trunc {late[0]}' and 'docker service logs {late[0]}' say more")
        for one in late if time.monotonic() - began > SLOW else ():
            if (why := _why(one)) and why not in said:
                print(f"{one} is not up yet: {why}", file=sys.stderr, flush=True)
                said.add(why)
        time.sleep(1)


def _why(service: str) -> str:
    """The error of the last of a service's containers that had one; empty: none had."""
    ids = ask("docker", "service", "ps", "--quiet", service).stdout.split()
    shown = ask("docker", "inspect", "--format", "{{json .Status}}", *ids).stdout if ids else ""
    failed = [one for one in map(json.loads, shown.splitlines()) if one.get("Err")]
    return str(max(failed, key=lambda one: str(one["Timestamp"]))["Err"]) if failed else ""
