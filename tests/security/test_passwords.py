"""Whom the servers of a stack let in, and what the app's own user cannot do there, and `admin` can."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import amqp
import pytest
import requests
from redis import Redis
from redis.exceptions import RedisError

from tests.deploy.conftest import Checkout
from tests.harness.kit import kit
from tests.harness.waiting import until
from tests.security.conftest import place_of
from tests.security.test_containers import Running, docker

#: Accounts that are tried first, and those of former versions of the kit.
GUESSES = (("guest", "guest"), ("kit", "kit"), ("admin", "admin"), ("admin", "kit"), ("kit", ""), ("default", ""))
#: The roles whose passwords a service's container can read. A worker may do all that a producer may.
OF_A_SERVICE = {"worker": {"worker", "producer"}, "beat": {"beat"}, "flower": {"monitor"}, "exporter": {"monitor"}}
REDIS: tuple[tuple[str, ...], ...] = (
    ("CONFIG", "GET", "*"), ("CONFIG", "SET", "maxmemory-samples", "5"), ("ACL", "LIST"), ("ACL", "USERS"), ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "ID", "999999"), ("KEYS", "no-such*"), ("FLUSHDB",), ("MODULE", "LIST"), ("SLOWLOG", "GET"),
    ("LATENCY", "LATEST"), ("BGREWRITEAOF",), ("LASTSAVE",), ("REPLICAOF", "NO", "ONE"), ("ROLE",), ("SORT", "no-such"),
    ("SWAPDB", "14", "15"),
)  # fmt: skip
#: Of RabbitMQ's management interface: method, path, body.
RABBITMQ: tuple[tuple[str, str, Any], ...] = (
    ("GET", "users", None), ("GET", "definitions", None), ("GET", "permissions", None),
    ("PUT", "users/other", {"password": "x", "tags": "administrator"}), ("DELETE", "users/other", None),
    ("PUT", "vhosts/other", None), ("PUT", "permissions/other/kit", {"configure": ".*", "write": ".*", "read": ".*"}),
    ("PUT", "vhost-limits/other/max-queues", {"value": 1}), ("DELETE", "vhosts/other", None),
    ("PUT", "policies/kit/other", {"pattern": "^other$", "definition": {"max-length": 1}}),
    ("DELETE", "policies/kit/other", None), ("PUT", "global-parameters/other", {"value": 1}),
    ("DELETE", "global-parameters/other", None),
)  # fmt: skip


@dataclass(frozen=True)
class Door:
    """A server of a stack, as a program of this machine reaches it."""

    server: Running
    url: str
    passwords: dict[str, str]

    def of(self, user: str, password: str | None = None) -> str:
        """The address for another user, with the password that it has."""
        scheme, _, rest = self.url.partition("://")
        secret = quote(self.passwords[user] if password is None else password, safe="")
        return f"{scheme}://{user}:{secret}@{rest.rpartition('@')[2]}"

    @property
    def is_redis(self) -> bool:
        return self.url.startswith("redis")


def urls(checkout: Checkout, role: str = "producer") -> dict[str, str]:
    """The addresses that a program of this machine gets."""
    return dict(line.split("=", 1) for line in checkout.make("urls", f"ROLE={role}").stdout.splitlines())


@pytest.fixture(scope="module")
def doors(stack: list[Running], checkout: Checkout) -> list[Door]:
    shown = urls(checkout, "operator")
    by_service, found = {one.service: one for one in stack}, []
    for name, service in (("CELERY_BROKER_URL", "broker"), ("CELERY_RESULT_BACKEND", "results")):
        server = by_service.get(service) or by_service["broker"]
        app, admin = (server.sh(f"/usr/local/bin/start.sh account {role} | head -1") for role in ("operator", "admin"))
        assert f":{app}@" in shown[name] and len(app) > 25 and len(admin) > 25 and app != admin
        found.append(Door(server, shown[name], {"kit": app, "admin": admin}))
    assert found[0].passwords["admin"] == shown["ADMIN_PASSWORD"]
    return found


def lets_in(url: str) -> bool:
    """Whether a server lets a client do anything."""
    with suppress(amqp.exceptions.AMQPError, RedisError, OSError):
        if url.startswith("redis"):
            return Redis.from_url(url).exists("no-such") == 0
        with amqp.Connection(**place_of(url)) as connection:
            return bool(connection.channel())
    return False


def test_no_guess_is_let_in(doors: list[Door]) -> None:
    for door in doors:
        assert lets_in(door.of("kit")) and lets_in(door.of("admin"))
        assert not [guess for guess in GUESSES if lets_in(door.of(*guess))]
        assert not (door.is_redis and lets_in(f"redis://{door.url.rpartition('@')[2]}"))


def test_no_password_is_in_what_the_engine_shows(stack: list[Running], doors: list[Door]) -> None:
    """Nor in the environment and the command of a process."""
    secrets = {secret for door in doors for secret in door.passwords.values()}
    for one in stack:
        shown = json.dumps(one.facts) + docker("top", one.name) + one.sh("cat /proc/1/environ /proc/1/cmdline | tr '\\0' ' '")
        assert "PATH=" in shown
        assert not [secret for secret in secrets if secret in shown], one.service


def test_passwords_are_read_by_whom_they_are_for(stack: list[Running]) -> None:
    for one in stack:
        if one.service in ("broker", "results"):
            assert one.sh('stat -c %a "$KEYS" "$KEYS/operator" "$KEYS/admin"').split() == ["700", "600", "600"]
        elif mine := OF_A_SERVICE.get(one.service):
            read = one.sh("for file in /keys/*; do cat $file >/dev/null 2>&1 && echo ${file#*.}; done").split()
            assert {*read} == mine
            assert not one.sh("touch /keys/x /keys/broker.worker 2>/dev/null && echo written", "0")
        else:
            assert not one.sh("ls /keys 2>/dev/null", "0")


def _redis(door: Door, user: str, words: tuple[str, ...]) -> bool:
    client: Any = Redis.from_url(door.of(user).rpartition("/")[0] + "/15")
    try:
        client.execute_command(*words)
    except RedisError as error:
        return "permission" not in str(error)  # such as of a wrong argument
    return True


def _rabbitmq(api: str, door: Door, user: str, call: tuple[str, str, Any]) -> bool:
    method, path, body = call
    account = (user, door.passwords[user])
    return requests.request(method, f"{api}/{path}", json=body, auth=account, timeout=20).status_code not in (401, 403)


def able(doors: list[Door], checkout: Checkout, user: str) -> tuple[list[str], int]:
    """What a user can do of all that only an administrator may; and how much that is."""
    api = f"http://127.0.0.1:{checkout.environ['RABBITMQ_MANAGEMENT_PORT']}/api"
    found: dict[str, bool] = {}
    for door in {door.server.name: door for door in doors}.values():
        if door.is_redis:
            found |= {" ".join(words): _redis(door, user, words) for words in REDIS}
        else:
            found |= {f"{call[0]} {call[1]}": _rabbitmq(api, door, user, call) for call in RABBITMQ}
    return [what for what, can in found.items() if can], len(found)


def test_the_apps_user_cannot_administrate(doors: list[Door], checkout: Checkout) -> None:
    can, tried = able(doors, checkout, "kit")
    assert not can and tried >= 15


def test_an_administrator_can(doors: list[Door], checkout: Checkout) -> None:
    """So that each attempt above is one that could succeed."""
    can, tried = able(doors, checkout, "admin")
    assert len(can) == tried


def test_users_do_not_change_what_a_server_finds_when_it_starts_again(doors: list[Door]) -> None:
    """Redis reads its file as `default`, and checks that user's rights to transactions: github.com/redis/redis/issues/14541."""
    for door in (door for door in doors if door.is_redis):
        client: Any = Redis.from_url(door.url)
        key = f"transaction-{uuid4().hex}"
        client.pipeline(transaction=True).set(key, "kept").set(f"{key}-2", "kept").execute()
        docker("restart", door.server.name)

        def found(client: Any = client, key: str = key) -> list[Any]:
            with suppress(RedisError):
                return list(client.mget(key, f"{key}-2"))
            return []

        assert until("Redis is up again", found) == [b"kept", b"kept"]
        client.delete(key, f"{key}-2")


def disconnect(doors: list[Door], checkout: Checkout) -> None:
    """Close the connections of all clients of the servers. They connect again."""
    for door in {one.server.name: one for one in doors}.values():
        if door.is_redis:
            client: Any = Redis.from_url(door.of("admin", admin_of(door)), single_connection_client=True)
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(skipme=True, _type=kind)
            continue
        api = f"http://127.0.0.1:{checkout.environ['RABBITMQ_MANAGEMENT_PORT']}/api"
        account = ("admin", admin_of(door))
        for one in requests.get(f"{api}/connections", auth=account, timeout=20).json():
            requests.delete(f"{api}/connections/{quote(one['name'])}", auth=account, timeout=20)


def admin_of(door: Door) -> str:
    return door.server.sh("/usr/local/bin/start.sh account admin").splitlines()[0]


def started(stack: list[Running]) -> dict[str, Any]:
    """When each container was started, and how often again."""
    facts = {one.name: json.loads(docker("inspect", one.name))[0] for one in stack}
    return {name: (one["State"]["StartedAt"], one["RestartCount"]) for name, one in facts.items()}


def test_new_passwords_while_tasks_run(stack: list[Running], doors: list[Door], checkout: Checkout) -> None:
    """What connects again is let in, each task runs, and no container is started again; in the end the former are refused."""
    before, former, sent = started(stack), urls(checkout), list[Any]()
    former_worker = urls(checkout, "worker")
    servers = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")

    @contextmanager
    def sending(shown: dict[str, str]) -> Iterator[None]:
        ended, app = threading.Event(), kit({name: shown[name] for name in servers}, "renewed")

        def send() -> None:
            while not ended.is_set():  # not more than the workers run
                sent.extend(app.send_task("workflows.count", (["id"], "one")) for _ in range(20))
                sent[-1].get(timeout=60)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    with sending(former):
        assert "has new passwords" in checkout.make("passwords", "RENEW=1").stdout
        assert all(lets_in(former[name]) and lets_in(urls(checkout)[name]) for name in servers)
        disconnect(doors, checkout)
        number = len(sent)
        until("tasks run", lambda: len(sent) > number + 100)
    latter = urls(checkout)
    with sending(latter):
        assert "has ended the former passwords" in checkout.make("passwords", "RENEW=end").stdout
        disconnect(doors, checkout)
        number = len(sent)
        until("tasks run", lambda: len(sent) > number + 100)
    reader = kit({name: latter[name] for name in servers}, "reader")  # the former senders are let in no longer
    assert all(reader.AsyncResult(one.id).get(timeout=120) == {"picture": "one", "sent": 1} for one in sent)
    assert len(sent) >= 20 and started(stack) == before
    assert not any(lets_in(shown[name]) for shown in (former, former_worker) for name in servers)
    assert all(lets_in(latter[name]) for name in servers)
    assert checkout.make("doctor").returncode == 0 and checkout.make("dead").stdout == "0 dead letters\n"
