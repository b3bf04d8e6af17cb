"""Published ports and pages: what is looked for there, as rows of the table (checks/), and what is let in.

And which of the broker's ports other containers reach, and where passwords are shown.
"""

import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import amqp
import pytest
import requests
from flower.urls import handlers
from redis import Redis
from redis.exceptions import RedisError
from tornado.routing import URLSpec

from celery_kit.base.login import FREE
from celery_kit.base.target import ROOT
from celery_kit.operate.look.monitor import ROUNDS
from celery_kit.operate.stacks.images import settings
from testbed.servers import SERVERS
from testbed.stack import SESSION
from tests.deploy.conftest import Checkout
from tests.harness.containers import LABEL
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.security.conftest import place_of
from tests.security.test_containers import Running, docker

#: Paths of Flower's pages: each that it has, with a name where it wants one.
FLOWER = [(one.regex.pattern if isinstance(one, URLSpec) else one[0]).rstrip("$") for one in handlers]
OWN = ("", "messages", "messages?", "//messages", "/./messages", "sms", "favicon.ico")
PROMETHEUS = (
    "",
    "metrics",
    "graph",
    "-/healthy",
    "-/ready",
    "api/v1/targets",
    "api/v1/status/config",
    "federate",
    "debug/pprof/",
)
RABBITMQ = ("api/overview", "api/queues", "api/users", "api/definitions", "api/connections", "api/whoami")
#: What a program says to be given mail.
READS = ("USER kit", "LIST", "RETR 1", "EXPN all", "TURN", "ETRN all", "A1 LOGIN kit kit")
#: Ports of the broker that only its own tools and Prometheus use: epmd's, that of other nodes, that of its metrics.
CLOSED = (4369, 25672, 15692)
CONNECT = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
        print(place)
    except OSError:
        pass
"""


def pages(*paths: str) -> Callable[[int], list[str]]:
    """A probe: the paths that are answered."""

    def probe(port: int) -> list[str]:
        found = []
        for path in paths:
            with requests.get(f"http://127.0.0.1:{port}/{path}", timeout=10, allow_redirects=False, stream=True) as answer:
                found += [path] if answer.status_code != 401 else []
        return found

    return probe


def commands(port: int) -> list[str]:
    with suppress(RedisError), Redis(port=port, socket_timeout=5) as client:
        return [str(client.keys("*"))]
    return []


def guest(port: int) -> list[str]:
    try:
        with amqp.Connection(**place_of(f"amqp://guest:guest@127.0.0.1:{port}//")):
            return ["guest"]
    except amqp.AccessRefused:
        return []


def reads(port: int) -> list[str]:
    """Commands that are answered by more than a refusal. A mail server has none that gives mail away."""
    found = []
    with socket.create_connection(("127.0.0.1", port), 5) as connection, connection.makefile("rw", newline="\r\n") as talk:
        talk.readline()
        for command in READS:
            talk.write(f"{command}\r\n")
            talk.flush()
            found += [command] if talk.readline()[:1] not in ("5", "") else []  # "": it has hung up
    return found


#: What a published port gives to who does not log in, by the port in the stack.
PROBES: dict[int, Callable[[int], list[str]]] = {
    1025: reads,
    5555: pages(*(path.replace("(.+)", "x").replace("(.*)", "x").replace("/?", "").lstrip("/") for path in FLOWER)),
    5672: guest,
    6379: commands,
    8025: pages(*OWN),
    9090: pages(*PROMETHEUS),
    15672: pages(*RABBITMQ),
}
#: Published where a registry has the image. Its log-in is its own.
GRAFANA = 3000
#: Pages, with the path of one that is worth a frame.
FRAMES = {5555: "workers", 8025: "", 9090: "graph", 15672: ""}
#: The pages whose log-in is the kit's.
OURS = (5555, 8025)


def published(one: Running) -> dict[int, int]:
    """The host's ports, by those in the stack."""
    ports = one.facts["NetworkSettings"]["Ports"] or {}
    return {int(port.partition("/")[0]): int(places[0]["HostPort"]) for port, places in ports.items() if places}


def passwords(checkout: Checkout) -> dict[int, str]:
    """Those of `kit`, by the port of the page."""
    shown = dict(line.split("=", 1) for line in checkout.make("urls").stdout.splitlines())
    monitor = (checkout.folder / ".kit/monitor/password").read_text()
    mail = shown["MAIL_URL"].removeprefix("http://kit:").partition("@")[0]
    return {5555: monitor, 9090: monitor, 8025: mail}


def headers_missing(port: int, path: str, account: tuple[str, str] | None) -> list[str]:
    """What a browser is not told of a page."""
    with requests.get(f"http://127.0.0.1:{port}/{path}", auth=account, timeout=10) as answer:
        told = answer.headers
    missing = [] if told.get("X-Frame-Options", "").lower() == "deny" else ["frame"]
    missing += [] if "frame-ancestors 'none'" in told.get("Content-Security-Policy", "") else ["frame-ancestors"]
    missing += (
        []
        if "object-src 'none'" in told.get("Content-Security-Policy", "")
        or "default-src 'none'" in told.get("Content-Security-Policy", "")
        else ["object-src"]
    )
    return missing + ([] if told.get("X-Content-Type-Options") == "nosniff" else ["type"])


def looked_at(port: int) -> int:
    """How many of 30 wrong guesses, one after the other, are looked at."""
    accounts = [("kit", uuid4().hex) for _ in range(30)]
    return sum(requests.get(f"http://127.0.0.1:{port}/", auth=one, timeout=10).status_code == 401 for one in accounts)


def shows(one: Running, secret: str) -> bool:
    """Whether the engine, or the process list, shows a password."""
    shown = (
        json.dumps(one.facts) + docker("top", one.name) + one.sh("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' ' '")
    )
    assert "PATH=" in shown
    return secret in shown


def reached(one: Running, addresses: list[str], ports: tuple[int, ...] = CLOSED) -> list[str]:
    """The places, as address:port, that a container connects to."""
    places = [f"{address}:{port}" for address in addresses for port in ports]
    return docker("exec", "--interactive", one.name, "python", "-", *places, input=CONNECT).split()


def addresses_of(one: Running) -> list[str]:
    return [network["IPAddress"] for network in one.facts["NetworkSettings"]["Networks"].values()]


class Careless(BaseHTTPRequestHandler):
    """Shows everything to everybody; or, at /private, refuses every guess as fast as it comes."""

    def do_GET(self) -> None:
        self.send_response(401 if self.headers["Authorization"] else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def page() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def mailbox() -> Iterator[int]:
    """Gives its mail to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection, connection.makefile("rw", newline="\r\n") as talk:
                    for _ in ("greeting", *READS):
                        talk.write("+OK\r\n")
                        talk.flush()
                        talk.readline()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@contextmanager
def redis() -> Iterator[int]:
    with Server() as server:
        yield server.port


@contextmanager
def rabbitmq(*options: str) -> Iterator[Running]:
    """The image as it is, without a setting of the kit's."""
    image = settings().get("RABBITMQ_IMAGE") or "rabbitmq:4-management"
    one = Running(docker("run", "--detach", "--rm", "--label", f"{LABEL}={SESSION}", *options, image))
    try:
        until("RabbitMQ is up", lambda: "Server startup complete" in docker("logs", one.name), 120, every=1)
        yield one
    finally:
        docker("rm", "--force", "--volumes", one.name)


@contextmanager
def amqp_server() -> Iterator[int]:
    with rabbitmq("--publish", "127.0.0.1::5672") as one:
        yield published(one)[5672]


CARELESS: dict[Any, Any] = {reads: mailbox, commands: redis, guest: amqp_server}


@pytest.mark.parametrize("broker", SERVERS)
def test_the_table_has_every_published_port(broker: str) -> None:
    words = ("docker", "compose", "-f", f"compose.{broker}.yaml", "--profile", "*", "config", "--format", "json")
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    services = json.loads(shown.stdout)["services"]
    ports = {port["target"] for service in services.values() for port in service.get("ports", [])}
    assert ports <= {*PROBES, GRAFANA} and {8025, 9090, 5555} < ports
    grafana = services["grafana"]["environment"]
    assert not [name for name in grafana if "ANONYMOUS" in name or "DISABLE_BRUTE_FORCE" in name or "ALLOW_EMBEDDING" in name]


def test_who_logs_in_sees_the_pages(stack: list[Running], checkout: Checkout) -> None:
    ports = {inside: port for one in stack for inside, port in published(one).items()}
    for inside, password in passwords(checkout).items():
        assert requests.get(f"http://127.0.0.1:{ports[inside]}/", auth=("kit", password), timeout=10).status_code == 200


def test_the_broker_opens_to_other_containers_what_they_use(stack: list[Running], checkout: Checkout) -> None:
    """4369, 25672 and 15692 stay closed; its own tools, and Prometheus, reach them."""
    by_service = {one.service: one for one in stack}
    broker = by_service["broker"]
    used = tuple(published(broker))
    for service in ("worker", "beat", "flower", "exporter", "mail"):
        assert not reached(by_service[service], addresses_of(broker)), service
    assert reached(by_service["worker"], ["broker"], used)
    if 5672 not in used:
        return
    assert "rabbit@broker" in broker.sh("rabbitmqctl --quiet status")
    port, password = published(by_service["prometheus"])[9090], passwords(checkout)[9090]

    def scraped() -> bool:
        answer = requests.get(f"http://127.0.0.1:{port}/api/v1/targets", auth=("kit", password), timeout=10).json()
        return {(one["labels"]["job"], one["health"]) for one in answer["data"]["activeTargets"]} >= {
            ("broker", "up"),
            ("flower", "up"),
        }

    until("Prometheus reads all metrics", scraped, 60, every=1)


def test_the_check_of_the_brokers_ports_finds_a_careless_one(stack: list[Running]) -> None:
    worker = next(one for one in stack if one.service == "worker")
    inside = next(name for name in worker.facts["NetworkSettings"]["Networks"] if name.endswith("_inside"))
    with rabbitmq("--network", inside) as careless:
        assert len(reached(worker, addresses_of(careless))) == len(CLOSED)


def test_a_container_in_the_stack_needs_the_password_too(stack: list[Running]) -> None:
    """All but the kit's own metrics, which are published nowhere."""
    worker, exporter = (next(one for one in stack if one.service == name) for name in ("worker", "exporter"))
    ask = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)"
    for place in ("flower:5555/metrics", "mail:8025/messages"):
        assert "401" in docker("exec", worker.name, "sh", "-c", f"python -c '{ask}' http://{place} 2>&1", check=False)
    assert not published(exporter)


def test_no_page_shows_its_password_elsewhere(stack: list[Running], checkout: Checkout) -> None:
    secrets = set(passwords(checkout).values())
    assert len(secrets) == 2 and all(len(secret) > 20 for secret in secrets)
    assert not [one.service for one in stack for secret in secrets if shows(one, secret)]


def test_the_check_of_passwords_finds_a_careless_container(stack: list[Running]) -> None:
    image = next(one for one in stack if one.service == "mail").facts["Config"]["Image"]
    secret = uuid4().hex
    for words in (("--env", f"SECRET={secret}", image, "sleep", "60"), (image, "sh", "-c", f"sleep 60; echo {secret}")):
        one = Running(docker("run", "--detach", "--rm", "--label", f"{LABEL}={SESSION}", *words))
        try:
            assert shows(one, secret)
        finally:
            docker("rm", "--force", one.name)


def test_log_in_is_slowed_after_failures(stack: list[Running], checkout: Checkout) -> None:
    """By the kit on its pages. Prometheus offers nothing but the cost of its hash: that has to be there."""
    ports = {inside: port for one in stack for inside, port in published(one).items()}
    for inside in OURS:
        assert looked_at(ports[inside]) <= FREE + 4
        url, account = f"http://127.0.0.1:{ports[inside]}/", ("kit", passwords(checkout)[inside])
        until(f"{inside} lets the right password in", lambda: requests.get(url, auth=account, timeout=10).ok, 20, every=1)  # noqa: B023
    flower = next(one for one in stack if one.service == "flower")
    hashed = json.loads(flower.sh("cat /data/web.yml"))["basic_auth_users"]["kit"]
    assert hashed.startswith(f"$2b${ROUNDS}$") and ROUNDS >= 12
