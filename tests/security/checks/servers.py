"""Whom servers let in, what the app's own user may do there, and who reaches them."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from redis import Redis
from redis.exceptions import RedisError

from tests.harness.waiting import until
from tests.security.checks.contract import AbsentError, Attempt, Check, Plant, Subject, container, instead, logs
from tests.security.test_containers import OUTSIDE, Running, docker
from tests.security.test_pages import CLOSED, CONNECT, addresses_of, rabbitmq, reached, shows
from tests.security.test_passwords import GUESSES, RABBITMQ, REDIS, lets_in

ONLY_REDIS, ONLY_RABBITMQ = ("redis",), ("rabbitmq",)


def urls(subject: Subject, account: tuple[str, str] | None) -> list[str]:
    """The addresses of the servers, for an account, or for nobody in particular."""
    found = []
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        scheme, _, rest = subject.urls[name].partition("://")
        user = f"{account[0]}:{quote(account[1], safe='')}@" if account else ""
        found.append(f"{scheme}://{user}{rest.rpartition('@')[2]}")
    return found


def enters(account: tuple[str, str] | None) -> Attempt:
    """An attempt: a server lets a guess in."""

    def attempt(subject: Subject) -> list[str]:
        tried = [
            one for one in urls(subject, account) if account or one.startswith("redis")
        ]  # AMQP has no login without a user
        return [one.partition("://")[0] for one in tried if lets_in(one)]

    return attempt


@contextmanager
def as_admin(subject: Subject) -> Iterator[Subject]:
    """The app has the administrator's account."""
    admin = subject.accounts["admin"]
    names = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
    changed = dict(zip(names, urls(subject, admin), strict=True))
    yield replace(subject, urls={**subject.urls, **changed}, accounts={**subject.accounts, "app": admin})


def knows(guess: tuple[str, str] | None) -> Plant:
    """The guess is right: a server whose users are these."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        image = next(
            one.facts["Config"]["Image"] for one in subject.servers if "6379/tcp" in one.facts["Config"]["ExposedPorts"]
        )
        user, password = guess or ("default", "")
        rights = f"{'nopass' if not password else '>' + password} ~* &* +@all"
        words = ("--publish", "127.0.0.1::6379", image, "redis-server", "--user", user, "on", *rights.split())
        with container(*words) as one:
            until("it is up", lambda: "Ready to accept" in logs(one), 20, every=0.2)
            port = Running(one.name).facts["NetworkSettings"]["Ports"]["6379/tcp"][0]["HostPort"]
            address = f"redis://127.0.0.1:{port}/0"
            yield replace(subject, urls={"CELERY_BROKER_URL": address, "CELERY_RESULT_BACKEND": address})

    return Plant("a server with such a user", made)


def commands(words: tuple[str, ...]) -> Attempt:
    """An attempt: the app's user gives a command of an administrator's."""

    def attempt(subject: Subject) -> bool:
        url = subject.urls["CELERY_RESULT_BACKEND"].rpartition("/")[0] + "/15"
        client: Any = Redis.from_url(url)
        try:
            client.execute_command(*words)
        except RedisError as error:
            return "permission" not in str(error)  # such as of a wrong argument
        return True

    return attempt


def calls(method: str, path: str, body: Any) -> Attempt:
    """An attempt: the app's user has the management interface do what an administrator does."""

    def attempt(subject: Subject) -> bool:
        user, vhost = subject.accounts["app"][0], quote(subject.vhost, safe="")
        place = path.replace("policies/kit/", f"policies/{vhost}/").replace("other/kit", f"other/{user}")
        url = f"http://127.0.0.1:{subject.port(15672)}/api/{place}"
        answer = requests.request(method, url, json=body, auth=subject.accounts["app"], timeout=20)
        return answer.status_code not in (401, 403)

    return attempt


def shown_by_engine(which: str) -> Attempt:
    """An attempt: what the engine and the process list show of a container has a password of the servers."""

    def attempt(subject: Subject) -> list[str]:
        user, secret = subject.accounts[which]
        text = f"{user}:{secret}@" if secret == user else secret
        if not secret:
            raise AbsentError("there is no password")
        return sorted(one.service for one in subject.containers if shows(one, text))

    return attempt


@contextmanager
def telling(subject: Subject) -> Iterator[Subject]:
    """A worker that has all passwords of the servers in its environment."""
    image = subject.service("worker").facts["Config"]["Image"]
    words = [word for name, (_, secret) in subject.accounts.items() for word in ("--env", f"{name}={secret}")]
    with container(*words, "--entrypoint", "sleep", image, "600") as one:
        yield instead(replace(subject, containers=[]), "worker", one)


def has_admins(subject: Subject) -> dict[str, str]:
    """An attempt: a task finds the administrator's password in what its process can read."""
    user, secret = subject.accounts["admin"]
    if not secret:
        raise AbsentError("there is no password")
    text = f"{user}:{secret}@" if secret == user else secret
    line = f"grep -rls -- '{text}' /keys /run /data /srv /tmp /etc /proc/self/environ /proc/1/environ 2>/dev/null | head -2"
    return {one.service: found for one in subject.with_python if (found := one.sh(line))}


def changes_password(subject: Subject) -> dict[str, str]:
    """An attempt: a task changes the passwords that others read."""
    line = "touch /keys/x /keys/broker 2>/dev/null && echo written"
    return {one.service: found for one in subject.with_python if (found := one.sh(line))}


@contextmanager
def writable_keys(subject: Subject) -> Iterator[Subject]:
    """A worker with a folder of passwords that it may write to."""
    image = subject.service("worker").facts["Config"]["Image"]
    with container("--tmpfs", "/keys:mode=1777", "--entrypoint", "sleep", image, "600") as one:
        yield instead(replace(subject, containers=[]), "worker", one)


def way_out(subject: Subject) -> list[str]:
    """An attempt: a server gets an answer from outside. Where nothing outside answers, its networks' own settings decide."""
    found, image = [], subject.service("worker").facts["Config"]["Image"]
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    outside = [line.split()[1] for line in lines if line.startswith("nameserver")]

    def asked(network: str) -> str:
        words = ("run", "--rm", "--interactive", "--network", network, "--entrypoint", "python", image, "-", outside[0])
        return docker(*words, check=False, input=OUTSIDE)

    answers = bool(outside and asked("bridge"))
    for one in subject.servers:
        for name in one.facts["NetworkSettings"]["Networks"]:
            options = json.loads(docker("network", "inspect", name))[0]["Options"] or {}
            leads = asked(name) if answers else options.get("com.docker.network.bridge.enable_ip_masquerade") != "false"
            found += [f"{one.service} by {name.rpartition('_')[2]}"] if leads else []
    return found


def replaced(service: str, *words: str) -> Callable[[Subject], AbstractContextManager[Subject]]:
    """Makes a container of the worker's image by the words of `docker run`, in the place of a service."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        image = subject.service("worker").facts["Config"]["Image"]
        options, command = words[: words.index("--")], words[words.index("--") + 1 :]
        with container(*options, "--entrypoint", command[0], image, *command[1:]) as one:
            yield instead(subject, service, one)

    return made


def listens(subject: Subject) -> dict[str, str]:
    """An attempt: a worker or beat listens on a port. The engine's resolver, on 127.0.0.11, is not theirs."""
    found: dict[str, str] = {}
    for name in ("worker", "beat"):
        lines = map(str.split, subject.service(name).sh("cat /proc/net/tcp /proc/net/tcp6").splitlines())
        ports = {words[1] for words in lines if len(words) > 3 and words[3] == "0A" and not words[1].startswith("0B00007F")}
        found |= {name: " ".join(sorted(ports))} if ports else {}
    return found


def from_outside(services: tuple[str, ...]) -> Attempt:
    """An attempt: a program elsewhere, here in a container of another network, reaches published ports."""

    def attempt(subject: Subject) -> list[str]:
        image = subject.service("worker").facts["Config"]["Image"]
        gateway = json.loads(docker("network", "inspect", "bridge"))[0]["IPAM"]["Config"][0]["Gateway"]
        ports = replace(subject, containers=[one for one in subject.containers if one.service in services]).ports()
        if not ports:
            raise AbsentError(f"no port of {' or '.join(services)}")
        places = [f"{gateway}:{port}" for port in ports.values()]
        words = ("run", "--rm", "--interactive", "--network", "bridge", "--entrypoint", "python", image, "-", *places)
        open_ones = docker(*words, input=CONNECT).split()
        return [f"port {inside}" for inside, port in ports.items() if f"{gateway}:{port}" in open_ones]

    return attempt


def closed(port: int) -> Attempt:
    """An attempt: a worker reaches a port of the broker that only the broker's own tools use."""
    return lambda subject: reached(subject.service("worker"), addresses_of(subject.service("broker")), (port,))


@contextmanager
def as_it_is(subject: Subject) -> Iterator[Subject]:
    """A broker from its image, without a setting of the kit's, beside the worker."""
    inside = next(name for name in subject.service("worker").facts["NetworkSettings"]["Networks"] if name.endswith("_inside"))
    with rabbitmq("--network", inside) as one:
        yield instead(subject, "broker", one)


ADMIN, AS_IT_IS = Plant("the app as `admin`", as_admin), Plant("the server's image as it is", as_it_is)
TELLING = Plant("a worker with it in its environment", telling)
WRITES = Plant("a folder that it may write to", writable_keys)
ANSWERS = ("--", "python", "-m", "http.server", "8000")
ON_BRIDGE = Plant("a server on the engine's own network", replaced("broker", "--network", "bridge", "--", "sleep", "600"))
LISTENING = Plant("a worker with a server in it", replaced("worker", *ANSWERS))
PUBLISHED = {
    service: Plant("a port that is published for every address", replaced(service, "--publish", "0.0.0.0::8000", *ANSWERS))
    for service in ("broker", "flower")
}
ROWS = (
    *(
        Check("server users", f"a server lets in {user}:{secret}", enters((user, secret)), knows((user, secret)))
        for user, secret in GUESSES
    ),
    Check("server users", "a server lets in who has no password", enters(None), knows(None), ONLY_REDIS),
    *(Check("server users", f"the app's user: {' '.join(words)}", commands(words), ADMIN, ONLY_REDIS) for words in REDIS),
    *(
        Check("server users", f"the app's user: {method} {path}", calls(method, path, body), ADMIN, ONLY_RABBITMQ)
        for method, path, body in RABBITMQ
    ),
    Check("server users", "the engine shows the app's password", shown_by_engine("app"), TELLING),
    Check("server users", "the engine shows the administrator's password", shown_by_engine("admin"), TELLING),
    Check("files", "a task finds the administrator's password", has_admins, TELLING),
    Check("files", "a task changes the passwords that others read", changes_password, WRITES),
    Check("network", "a server has a way out", way_out, ON_BRIDGE),
    Check("network", "a worker or beat listens on a port", listens, LISTENING),
    Check(
        "network", "another machine reaches the broker or the results", from_outside(("broker", "results")), PUBLISHED["broker"]
    ),
    Check("network", "another machine reaches a page", from_outside(("flower", "mail", "prometheus")), PUBLISHED["flower"]),
    *(Check("network", f"a worker reaches the broker's port {port}", closed(port), AS_IT_IS, ONLY_RABBITMQ) for port in CLOSED),
)
