"""What each role may and may not do on its server, on running ones.

An operator, who may do all of it, or an administrator shows that each attempt could succeed: another one would prove nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import amqp
import pytest
import requests
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from celery_kit.base.messages import PAUSED
from celery_kit.brokers.rabbitmq.pauses import ARGUMENTS
from testbed.servers import SERVERS
from testbed.servers.contract import TRUSTED, secured
from testbed.stack import Stack
from tests.harness.containers import require_engine
from tests.harness.kit import kit
from tests.security.conftest import place_of

#: Roles that a container or a program has. An operator may do all that the app can, an administrator everything.
LIMITED = ("producer", "beat", "worker", "monitor")
REPLIES = "2f1b7f3e-90a3-4a57-9d3c-1c1f0a6b7c8d"
TOKEN = "celery-kit.beat.app"
OTHERS = "3a1b7f3e-90a3-4a57-9d3c-1c1f0a6b7c8d"


@dataclass
class Door:
    """A server, and the URL of each role."""

    stack: Stack
    port: int

    def url(self, role: str) -> str:
        server = SERVERS[self.stack.name]
        url = secured(server.url.format(host="127.0.0.1", port=self.port, namespace=server.default))
        return self.stack.url_for(role, url)


@pytest.fixture(scope="module", params=SERVERS)
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    require_engine()
    with Stack(request.param, "roles", ("broker",)) as stack:
        yield Door(stack, stack.port(SERVERS[request.param].port))


# Redis: commands. Those of a transaction are of no use without others, and those of every connection are not listed.

#: What is there when a role comes. By its command, with the keys first.
THERE: tuple[tuple[str, ...], ...] = (
    ("DEL", "tasks", "celery.dead", "celery.dead.failed", "unacked", "_celery-kit.delayed", "_kombu.binding.celery", REPLIES),
    ("LPUSH", "tasks", "one", "two", "three"),
    ("LPUSH", REPLIES, "answer", "answer"),
    ("HSET", "celery.dead", "id", "letter"),
    ("HSET", "celery.dead.failed", "id", "letter"),
    ("HSET", "unacked", "tag", "message"),
    ("ZADD", "_celery-kit.delayed", "9999999999999", "tasks\nlater"),
    ("SADD", "_kombu.binding.celery", "celery"),
    ("SET", "celery-task-meta-x", "result"),
)
#: What only who administrates may do, or see.
ADMINISTRATES = (
    "CONFIG GET *", "CONFIG SET maxmemory-samples 5", "ACL LIST", "ACL SETUSER other on", "CLIENT LIST",
    "CLIENT KILL ID 999999", "KEYS no-such*", "FLUSHDB", "FLUSHALL", "MODULE LIST", "SLOWLOG GET", "BGREWRITEAOF",
    "REPLICAOF NO ONE", "SWAPDB 14 15", "SHUTDOWN ABORT", "MONITOR",
)  # fmt: skip
TAKES = (
    "RPOP tasks", "LPOP tasks", "BRPOP tasks 1", "LRANGE tasks 0 -1", "LINDEX tasks 0", "LREM tasks 0 one", "LTRIM tasks 0 0",
    "DEL tasks", "UNLINK tasks", "RENAME tasks others", "LMOVE tasks others LEFT LEFT", "EXPIRE tasks 100", "DUMP tasks",
)  # fmt: skip
READS = (
    "SMEMBERS _celery-kit.paused",
    "HGETALL celery.dead",
    "HGET celery.dead.failed id",
    "HVALS unacked",
    "ZRANGE _celery-kit.delayed 0 -1",
    "SCAN 0",
)
WRITES = (
    "SET celery-task-meta-x other", "SETEX celery-task-meta-x 9 other", "PUBLISH celery-task-meta-x other", "SET other 1",
    "HSET celery.dead id other", "HDEL celery.dead id", "HDEL celery.dead.failed id", "DEL unacked", "DEL celery.dead",
    "ZREM _celery-kit.delayed x", "DEL _celery-kit.delayed", "SADD _celery-kit.paused tasks", "SREM _celery-kit.paused x",
    "SADD _kombu.binding.celery mine", "DEL _kombu.binding.celery",
)  # fmt: skip
CONTROLS = (
    "PUBLISH /0.celery.pidbox shutdown",
    "PUBLISH /12.celery.pidbox shutdown",
    "SUBSCRIBE /0.celery.pidbox",
    "PSUBSCRIBE *",
)
SCRIPTS = ("EVAL return|redis.call('RPOP','tasks') 0", "EVAL return|redis.call('HGETALL','celery.dead') 0", "FUNCTION FLUSH")
SENDS = (
    "LPUSH tasks message", "LLEN tasks", "SMEMBERS _kombu.binding.celery", "SMEMBERS _celery-kit.fanout",
    "PUBLISH /0.news message",
    "PUBLISH /3.celery message", "ZCOUNT _celery-kit.delayed -inf 5", "EVAL return|redis.call('LPUSH','tasks','x') 1 tasks",
    "MULTI", "PING",
)  # fmt: skip
#: What beats have among themselves.
LEADS = (
    "WATCH _celery-kit.beat.leader",
    "SET _celery-kit.beat.leader me",
    "HSET _celery-kit.beat a run",
    "DEL _celery-kit.beat",
)
REDIS_MAY = {
    "producer": (
        *SENDS, "GET celery-task-meta-x", "MGET celery-task-meta-x", "SUBSCRIBE celery-task-meta-x", f"BRPOP {REPLIES} 1",
        "SET chord-unlock-x.s 2", "DEL celery-task-meta-y",
    ),
    "beat": (*SENDS, *LEADS, "GET _celery-kit.beat.leader", "HGETALL _celery-kit.beat"),
    "worker": (
        *TAKES[:-1], *WRITES, *SENDS, "HGETALL celery.dead", "PSUBSCRIBE /0.celery.pidbox", f"LPUSH {REPLIES} answer",
        "SCRIPT LOAD return|1",
    ),
    "monitor": (
        "LRANGE tasks 0 -1", "LLEN tasks", *READS, "INFO", "GET celery-task-meta-x", "PUBLISH /0.celery.pidbox command",
        "PSUBSCRIBE /0.celeryev/*", f"BRPOP {REPLIES}.reply.celery.pidbox 1",
        f"SADD _kombu.binding.reply.celery.pidbox {REPLIES}",
    ),
}  # fmt: skip
REDIS_MAY_NOT = {
    "producer": (*TAKES, *READS, *WRITES, *LEADS[1:], "HGETALL _celery-kit.beat", *CONTROLS, *SCRIPTS, *ADMINISTRATES),
    "beat": (
        *TAKES, *READS, *WRITES, *CONTROLS, *SCRIPTS, *ADMINISTRATES, "GET celery-task-meta-x", "SUBSCRIBE celery-task-meta-x",
        f"RPOP {REPLIES}", "DEL celery-task-meta-x",
    ),
    "worker": (*ADMINISTRATES, "SCAN 0", "RANDOMKEY", "DBSIZE", "FUNCTION FLUSH", "SCRIPT FLUSH"),
    "monitor": (
        *(one for one in TAKES if one.split()[0] not in ("LRANGE", "LINDEX", "DUMP")), *WRITES, "LPUSH tasks message",
        "PUBLISH /0.celeryev event", "PUBLISH /0.news message", SCRIPTS[0], "FUNCTION FLUSH", *LEADS[1:], *ADMINISTRATES,
    ),
}  # fmt: skip


def on_redis(door: Door, role: str, what: str) -> bool:
    """Whether a role may do it. An error other than of rights is not a refusal."""
    there: Any = Redis.from_url(door.url("operator"))
    for words in THERE:
        there.execute_command(*words)
    client: Any = Redis.from_url(door.url(role), single_connection_client=True, socket_timeout=5)
    try:
        client.connection.send_command(*(word.replace("|", " ") for word in what.split(" ")))
        client.connection.read_response()
    except RedisError as error:
        return not any(word in str(error) for word in ("NOPERM", "permissions", "can't run this command", "ACL failure"))
    finally:
        client.close()
        there.close()
    return True


# RabbitMQ: a function of a channel, or a call of its management interface.

Attempt = Callable[[Any], Any]


def prepared(channel: Any) -> None:
    """What is there when a role comes, as a worker declares it."""
    for name in ("tasks", "celery.dead", "celeryev", "celery_delayed_27"):
        channel.exchange_declare(name, "topic", durable=True, auto_delete=False)
    channel.exchange_declare("celery-kit.beat", "direct", durable=True, auto_delete=False)
    for name in ("celery.pidbox", "reply.celery.pidbox"):
        channel.exchange_declare(name, "fanout", durable=False, auto_delete=False)
    for name in ("tasks", "celery.dead", "celery.dead.failed", REPLIES, OTHERS, TOKEN, "celeryev.one", "a.reply.celery.pidbox"):
        channel.queue_declare(name, durable=True, auto_delete=False)
        channel.basic_publish(amqp.Message("message"), routing_key=name)
    channel.queue_bind("tasks", "tasks", "tasks")
    channel.exchange_declare(PAUSED, "direct", durable=True, auto_delete=False)
    channel.queue_declare(PAUSED, durable=True, auto_delete=False, arguments=ARGUMENTS)


def publish(exchange: str, key: str = "tasks") -> Attempt:
    return lambda channel: channel.basic_publish(amqp.Message("message"), exchange=exchange, routing_key=key)


def get(queue: str) -> Attempt:
    return lambda channel: channel.basic_get(queue)


def declare(queue: str) -> Attempt:
    return lambda channel: channel.queue_declare(queue, durable=True, auto_delete=False)


def bind(queue: str, exchange: str) -> Attempt:
    return lambda channel: channel.queue_bind(queue, exchange, "#")


TAKE: dict[str, Attempt] = {
    "get a task": get("tasks"),
    "consume tasks": lambda channel: channel.basic_consume("tasks", callback=print),
    "purge tasks": lambda channel: channel.queue_purge("tasks"),
    "delete the queue": lambda channel: channel.queue_delete("tasks"),
    "delete the exchange": lambda channel: channel.exchange_delete("tasks"),
    "declare the queue": declare("tasks"),
    "declare another queue": declare("others"),
    "declare an exchange": lambda channel: channel.exchange_declare("others", "topic"),
    "unbind the queue": lambda channel: channel.queue_unbind("tasks", "tasks", "tasks"),
    "read a dead letter": get("celery.dead"),
    "purge the failed tasks": lambda channel: channel.queue_purge("celery.dead.failed"),
    "copy tasks to a queue of its own": bind(REPLIES, "tasks"),
}
PAUSE: dict[str, Attempt] = {
    "pause a queue": lambda channel: channel.queue_bind(PAUSED, PAUSED, "tasks"),
    "resume a queue": lambda channel: channel.queue_unbind(PAUSED, PAUSED, "tasks"),
}
FORGE: dict[str, Attempt] = {
    "make a dead letter": publish("celery.dead"),
    "send to any queue": publish("", "celery.dead"),
    "answer another's request": publish("", OTHERS),
    "send remote control": publish("celery.pidbox", ""),
    "answer remote control": publish("reply.celery.pidbox", ""),
    "send by RabbitMQ's own exchange": publish("amq.topic"),
    "read events": get("celeryev.one"),
    "read answers to remote control": get("a.reply.celery.pidbox"),
}
MAY: dict[str, dict[str, Any]] = {
    "producer": {
        "send a task": publish("tasks"),
        "send a delayed task": publish("celery_delayed_27"),
        "declare its queue of replies": declare(REPLIES),
        "read it": get(REPLIES),
        "count what waits": lambda channel: channel.queue_declare("tasks", passive=True),
    },
    "beat": {
        "send a task": publish("tasks"),
        "name its queue of replies": declare(REPLIES),
        "declare the queue of who leads": declare(TOKEN),
        "bind it": bind(TOKEN, "celery-kit.beat"),
        "lead": publish("celery-kit.beat", TOKEN),
        "see who leads": get(TOKEN),
    },
    "worker": {
        **{name: attempt for name, attempt in TAKE.items() if "copy" not in name},
        "send a task": publish("tasks"),
        "answer": publish("", REPLIES),
        "bind": bind("tasks", "tasks"),
        "send events": publish("celeryev"),
        "ask whether a queue is paused": publish(PAUSED),
    },
    "monitor": {
        "send remote control": publish("celery.pidbox", ""),
        "declare its queue of answers": declare("a.reply.celery.pidbox"),
        "bind it": bind("a.reply.celery.pidbox", "reply.celery.pidbox"),
        "read answers": get("a.reply.celery.pidbox"),
        "bind its queue of events": bind("celeryev.one", "celeryev"),
        "read events": get("celeryev.one"),
        "count what waits": lambda channel: channel.queue_declare("tasks", passive=True),
        "list queues": ("GET", "queues/kit", None),
    },
}
#: Of RabbitMQ's management interface: method, path, body.
HTTP: tuple[tuple[str, str, Any], ...] = (
    ("GET", "users", None), ("GET", "definitions", None), ("GET", "permissions", None),
    ("PUT", "users/other", {"password": "x", "tags": "administrator"}), ("DELETE", "users/other", None),
    ("PUT", "vhosts/other", None), ("PUT", "permissions/other/kit", {"configure": ".*", "write": ".*", "read": ".*"}),
    ("DELETE", "vhosts/other", None), ("PUT", "policies/kit/other", {"pattern": "^other$", "definition": {"max-length": 1}}),
    ("DELETE", "policies/kit/other", None), ("PUT", "global-parameters/other", {"value": 1}),
    ("DELETE", "global-parameters/other", None),
)  # fmt: skip
ADMINISTRATE: dict[str, Any] = {f"{method} {path}": (method, path, body) for method, path, body in HTTP}
LOOK: dict[str, Any] = {f"GET {path}": ("GET", path, None) for path in ("overview", "queues/kit", "connections", "nodes")}
MAY_NOT: dict[str, dict[str, Any]] = {
    "producer": {
        **TAKE,
        **PAUSE,
        **FORGE,
        "lead in place of beat": publish("celery-kit.beat", TOKEN),
        "see which beat leads": get(TOKEN),
        **LOOK,
        **ADMINISTRATE,
    },
    "beat": {**TAKE, **PAUSE, **FORGE, "read an answer": get(REPLIES), **LOOK, **ADMINISTRATE},
    "worker": {
        "send by RabbitMQ's own exchange": publish("amq.topic"),
        "copy from RabbitMQ's own exchange": bind("tasks", "amq.topic"),
        "read answers to remote control": get("a.reply.celery.pidbox"),
        **PAUSE,
        **LOOK,
        **ADMINISTRATE,
    },
    "monitor": {
        **TAKE,
        **PAUSE,
        **{
            name: attempt
            for name, attempt in FORGE.items()
            if name.split()[0] in ("make", "send", "answer") and "remote" not in name
        },
        "send a task": publish("tasks"),
        "send a delayed task": publish("celery_delayed_27"),
        **ADMINISTRATE,
    },
}


def on_rabbitmq(door: Door, role: str, what: Any) -> bool:
    """Whether a role may do it."""
    user, _, secret = door.stack.account("broker", role).partition(":")
    if isinstance(what, tuple):
        method, path, body = what
        api = f"http://127.0.0.1:{door.stack.port(15672)}/api"
        answer = requests.request(method, f"{api}/{path}", json=body, auth=(user, secret), timeout=20, verify=TRUSTED)
        return answer.status_code not in (401, 403)
    place = place_of(door.url("operator"))
    with amqp.Connection(**place) as connection:
        prepared(connection.channel())
    given = {**place, "userid": user, "password": secret}
    try:
        with amqp.Connection(**given, confirm_publish=True) as connection:
            what(connection.channel())
    except amqp.AccessRefused:
        return False
    except amqp.AMQPError:
        return True  # such as of what is not there
    return True


def attempts(door: Door, role: str, may: bool) -> dict[str, Callable[[str], bool]]:
    """By its name, what to try, as a function of the role that tries it."""
    if door.stack.name == "redis":
        lines = (REDIS_MAY if may else REDIS_MAY_NOT)[role]
        return {line: partial(on_redis, door, what=line) for line in lines}
    table = (MAY if may else MAY_NOT)[role]
    return {name: partial(on_rabbitmq, door, what=what) for name, what in table.items()}


@pytest.mark.parametrize("role", LIMITED)
def test_a_role_may_do_its_work(door: Door, role: str) -> None:
    refused = [name for name, attempt in attempts(door, role, may=True).items() if not attempt(role)]
    assert not refused


@pytest.mark.parametrize("role", LIMITED)
def test_a_role_may_do_nothing_else(door: Door, role: str) -> None:
    tried = attempts(door, role, may=False)
    assert len(tried) >= 10
    assert not [name for name, attempt in tried.items() if attempt(role)]


@pytest.mark.parametrize("role", LIMITED)
def test_each_of_these_attempts_can_be_made(door: Door, role: str) -> None:
    """By the operator, who was everybody's user before there were roles, or by an administrator."""
    tried = attempts(door, role, may=False)
    assert not [name for name, attempt in tried.items() if not (attempt("operator") or attempt("admin"))]


@pytest.mark.parametrize("options", [{}, {"countdown": 5}], ids=["at once", "later"])
def test_a_producer_is_told_of_a_queue_that_no_worker_has_declared(door: Door, options: dict[str, Any]) -> None:
    """Where it would be lost, and is not once somebody has. On Redis a queue is there with its first message."""
    urls = {role: door.url(role) for role in ("producer", "operator")}
    sender, declarer = (
        kit({"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0", "PUBLISH_TIMEOUT": "2"}, role)
        for role, url in urls.items()
    )
    queue = f"later-{len(options)}"
    if door.stack.name == "rabbitmq":
        with pytest.raises(OperationalError, match="no worker has declared"):
            sender.send_task("probes.add", (1, 2), queue=queue, **options)
        declarer.send_task("probes.add", (1, 2), queue=queue, countdown=1)
    assert sender.send_task("probes.add", (1, 2), queue=queue, **options).id
    with sender.connection_for_write() as connection:
        assert sender.send_task("probes.add", (1, 2), queue=queue, connection=connection, **options).id


def test_beat_sends_what_is_due(door: Door) -> None:
    """By Celery's own producer, which declares what it sends to; a worker has done so."""
    apps = {
        role: kit({"CELERY_BROKER_URL": door.url(role), "CELERY_RESULT_BACKEND": ""}, role) for role in ("beat", "operator")
    }
    apps["operator"].send_task("probes.add", (1, 2))
    scheduler = Scheduler(apps["beat"], lazy=True)
    entry = ScheduleEntry(name="due", task="probes.add", args=(1, 2), schedule=schedule(60), app=apps["beat"])
    assert scheduler.apply_async(entry, producer=scheduler.producer, advance=False).id
