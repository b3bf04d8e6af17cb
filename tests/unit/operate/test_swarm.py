"""What a swarm is given, made from the real Compose files by Docker's client; the swarm itself: tests/swarm."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from celery_kit.base.refusals import unless_refused
from celery_kit.base.target import ROOT
from celery_kit.brokers.contract import ROLES
from celery_kit.operate import deploy
from celery_kit.operate.groups import Group
from celery_kit.operate.stacks import certificates, passwords, swarm, swarm_file
from celery_kit.operate.stacks.compose import Compose
from testbed.servers import SERVERS

pytestmark = pytest.mark.skipif(not shutil.which("docker"), reason="no Docker client, which reads Compose files")
GROUPS = (
    Group("mail", "gevent", ("mail",), (2, 4), time_limit=60, memory="300m", cpus=0.5),
    Group("rest", "prefork", ("celery",), (1, 1)),
)
Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the monitor's password and the certificates are."""
    folder = tmp_path_factory.mktemp("swarm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONITOR_PASSWORD_FILE", str(folder / "own/password"))
        patch.setattr(certificates, "FOLDER", folder / "tls")
        yield folder


@cache
def config(broker: str, backend: str = "redis", **environ: str) -> Any:
    """A stack as Docker's client reads it, with all of its services. `environ`: variables of the user."""
    compose = Compose(broker)
    compose.project = "shop"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WORKER_SEND_TASK_EVENTS", "COMPOSE_PROFILES", "CERTIFICATES"):
            patch.setenv(name, "")  # so that it is as before in the end
        for name, value in environ.items():
            patch.setenv(name, value)
        return compose.config(GROUPS, backend, None, ["monitor", "grafana"], {})[0]


@pytest.fixture
def make(folder: Path) -> Make:
    """The file for a broker. `elsewhere`: there are other nodes; the rest is as of `config`."""

    def made(broker: str, elsewhere: bool = True, **given: str) -> dict[str, Any]:
        return swarm_file.stack(config(broker, **given), "shop", broker, Objects(), elsewhere)

    return made


class Objects(dict[str, str]):
    """The swarm's secrets with passwords, all of them."""

    def __missing__(self, key: str) -> str:
        return f"shop_{key}-1"


def secrets_of(service: dict[str, Any]) -> dict[str, str]:
    """By target, the secrets of a service."""
    return {one["target"]: one["source"] for one in service.get("secrets", [])}


@pytest.mark.parametrize("backend", ["redis", "rpc"])
@pytest.mark.parametrize("broker", SERVERS)
def test_docker_takes_the_file(make: Make, broker: str, backend: str, tmp_path: Path) -> None:
    """Its client checks it against the schema of stacks; nothing of the Compose files is unknown."""
    file = tmp_path / "stack.json"
    file.write_text(json.dumps(make(broker, backend=backend, SECURE="mutual")))
    shown = subprocess.run(["docker", "stack", "config", "-c", file], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "Ignoring" not in shown.stderr


@pytest.mark.parametrize("broker", SERVERS)
def test_a_group_is_a_service_as_the_table_says(make: Make, broker: str) -> None:
    services = make(broker)["services"]
    assert {one for one in services if one.startswith("worker")} == {"worker-mail", "worker-rest"}
    mail = services["worker-mail"]
    assert mail["deploy"]["replicas"] == 2
    assert mail["deploy"]["resources"]["limits"] == {"memory": str(300 * 2**20), "cpus": "0.5", "pids": 4096}
    assert mail["stop_grace_period"] == "1m30s"
    assert {"type": "tmpfs", "target": "/tmp", "tmpfs": {"size": 512 * 2**20}} in mail["volumes"]
    environ = mail["environment"]
    assert (environ["CELERY_WORKER_QUEUES"], environ["TASK_TIME_LIMIT"]) == ("mail", "60")
    assert Group.from_note(mail["deploy"]["labels"]["celery-kit.group"]) == GROUPS[0]
    assert services["worker-rest"]["stop_grace_period"] == "5m30s"


@pytest.mark.parametrize("broker", SERVERS)
def test_workers_start_before_their_predecessors_stop_and_nothing_else_does(make: Make, broker: str) -> None:
    """There is one beat, and one server on its data. What does not become healthy is taken back."""
    for name, service in make(broker)["services"].items():
        deploy, first = service["deploy"], name.startswith("worker-")
        assert deploy["update_config"]["order"] == ("start-first" if first else "stop-first"), name
        assert deploy["update_config"]["failure_action"] == "rollback"
        assert deploy["endpoint_mode"] == "dnsrr"
        assert first or deploy["replicas"] == 1


def test_there_are_as_many_beats_as_are_asked_for(make: Make) -> None:
    for number in ("1", "3"):
        beat = make("redis", BEATS=number)["services"]["beat"]
        assert beat["deploy"]["replicas"] == int(number) and beat["environment"]["BEATS"] == number


@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_has_data_is_on_the_node_with_the_label_and_workers_elsewhere(make: Make, elsewhere: bool) -> None:
    for broker in SERVERS:
        for name, service in make(broker, elsewhere=elsewhere)["services"].items():
            workers = ["node.labels.celery-kit.broker != true"] * elsewhere
            expected = workers if name.startswith("worker-") else ["node.labels.celery-kit.broker == true"]
            assert service["deploy"]["placement"]["constraints"] == expected


@pytest.mark.parametrize("broker", SERVERS)
def test_each_container_has_the_passwords_of_its_roles_alone(make: Make, broker: str) -> None:
    chosen = {name: "by$hand" for server in SERVERS.values() for name in server.container.passwords} | {"ADMIN_PASSWORD": "adm"}
    made = make(broker, **chosen)
    services = made["services"]
    servers = {name: one["environment"]["KEY"] for name, one in services.items() if "KEY" in one.get("environment", {})}
    roles = {"worker-mail": ("worker", "producer"), "beat": ("beat",), "flower": ("monitor",), "exporter": ("monitor",)}
    for name, service in services.items():
        found = {file for file in secrets_of(service) if "." in Path(file).name}
        keys = {f"/keys/{key}.{role}" for key in servers.values() for role in roles.get(name, ())}
        if name in servers:
            keys = {f"/run/secrets/{servers[name]}.{role}" for role in ROLES}
        assert found == keys or name == "worker-rest"
        assert not any("by$" in str(value) or value == "adm" for value in service.get("environment", {}).values())
        assert "keys" not in [one.get("source") for one in service["volumes"]]
    assert all(made["secrets"][one]["external"] for one in made["secrets"] if "." in one and "_" not in one)
    wanted = swarm_file.wanted(config(broker, **chosen))
    assert (wanted["broker.operator"], wanted["broker.admin"], wanted["broker.worker"]) == ("by$hand", "adm", "")


def test_certificates_are_secrets_and_a_servers_key_is_at_servers_alone(make: Make) -> None:
    services = make("redis", SECURE="1")["services"]
    assert {"/tls/ca.pem", "/tls/server.pem"} <= secrets_of(services["broker"]).keys()
    theirs = secrets_of(services["worker-mail"])
    assert "/tls/ca.pem" in theirs and "/tls/server.pem" not in theirs
    assert not any("server.pem" in source for source in theirs.values())


def test_another_content_is_another_object(make: Make, folder: Path) -> None:
    """A swarm cannot change one; by its name the services that use it are replaced."""
    password = folder / "own/password"
    first = make("redis")
    again = make("redis")
    password.write_text("another")
    second = make("redis")
    assert first == again
    names = [secrets_of(one["services"]["flower"])["/run/secrets/monitor"] for one in (first, second)]
    assert names[0] != names[1] and all(len(one) <= 64 for made in (first, second) for one in made["secrets"])
    start = {one["target"]: one for one in first["services"]["broker"]["configs"]}[passwords.START]
    assert start["mode"] == 0o555 and first["configs"][start["source"]]["file"].endswith("redis/start.sh")


@pytest.mark.parametrize("broker", SERVERS)
def test_servers_are_on_networks_without_a_way_out_and_publish_nothing(make: Make, broker: str) -> None:
    """A swarm publishes on all addresses of a node, so only pages with a password are published."""
    made = make(broker)
    published = {name for name, one in made["services"].items() if one.get("ports")}
    assert published == {"flower", "prometheus", "grafana"}
    assert all(":" in one for service in made["services"].values() for one in service.get("extra_hosts", []))
    assert all(port["mode"] == "host" for name in published for port in made["services"][name]["ports"])
    assert made["networks"]["inside"] == {"driver": "overlay", "internal": True}
    assert made["networks"]["default"] == {"driver": "overlay"}
    servers = [one for one in made["services"].values() if "KEY" in one.get("environment", {})]
    assert servers and all("default" not in one["networks"] for one in servers)


@pytest.mark.usefixtures("folder")
def test_what_a_swarm_has_nothing_for_is_one_line() -> None:
    given = deepcopy(config("redis"))
    given["services"]["worker-mail"]["devices"] = ["/dev/null"]
    _, why = unless_refused(lambda: swarm_file.stack(given, "shop", "redis", Objects(), True))
    assert why == "worker-mail: devices cannot be had in a swarm; leave it out of the Compose files"
    given = deepcopy(config("redis"))
    given["services"]["worker-mail"]["volumes"].append({"type": "bind", "source": str(ROOT), "target": "/x"})
    _, why = unless_refused(lambda: swarm_file.stack(given, "shop", "redis", Objects(), True))
    assert why.startswith(f"{ROOT} cannot be written to in a swarm")


SWARMED = "BROKER=rabbitmq or BROKER=redis or BROKER=valkey"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], f"a swarm runs containers, and of a broker one; give {SWARMED}"),
        (["--broker=rabbitmq-cluster"], f"a swarm runs containers, and of a broker one; give {SWARMED}"),
        (["--broker=redis-sentinel"], f"a swarm runs containers, and of a broker one; give {SWARMED}"),
        (["--broker=redis"], "PINS is missing: the nodes get their images from a registry"),
        (["--broker=redis", "--pins=pins.json", "--stack=A b"], "STACK=A b is not allowed; small letters, digits and -"),
        (["--broker=redis", "--pins=pins.json"], "this engine manages no swarm; 'docker swarm init' makes one"),
        (["--look"], "this engine manages no swarm; 'docker swarm init' makes one"),
        (["--down"], "this engine manages no swarm; 'docker swarm init' makes one"),
    ],
)
def test_what_cannot_be_deployed_is_one_line(monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    for name in ("BROKER", "PINS", "STACK", "POOL", "LOOK", "DOWN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_HOST", "unix:///none")
    done = CliRunner().invoke(deploy.stack, words)
    lines = done.output.splitlines()
    assert done.exit_code == 2 and len(lines) == 1 and lines[0].startswith(f"celery-kit: {said}")


@pytest.mark.parametrize("manages", [True, False])
def test_an_engine_must_manage_a_swarm(monkeypatch: pytest.MonkeyPatch, manages: bool) -> None:
    """Also one that is a node of a swarm is no place to start a stack from. The answer is not an engine's."""
    said = json.dumps({"LocalNodeState": "active", "ControlAvailable": manages})
    monkeypatch.setattr(swarm, "ask", lambda *_: subprocess.CompletedProcess((), 0, said, ""))
    _, why = unless_refused(lambda: swarm.check("shop"))
    assert why.startswith("this engine manages no swarm") is not manages


def node(name: str, label: str = "", state: str = "ready") -> dict[str, Any]:
    labels = {swarm_file.PLACE: label} if label else {}
    return {
        "ID": name, "Description": {"Hostname": name}, "Status": {"State": state},
        "Spec": {"Labels": labels, "Availability": "active"},
    }  # fmt: skip


def test_one_node_has_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is, a server finds its volume again. The answers are not a swarm's, which would need several nodes."""
    nodes = [node("one", "true"), node("two"), node("three", state="down")]
    monkeypatch.setattr(swarm, "_inspected", lambda *_: nodes)
    assert swarm._place()
    nodes[1:2] = []
    assert not swarm._place(), "the only other one is down"
    nodes[:] = [node("one", "true"), node("two", "true")]
    _, why = unless_refused(swarm._place)
    assert why.startswith("the nodes one, two have the label celery-kit.broker=true, and data is on one")


@pytest.mark.parametrize(
    ("state", "said"), [("rollback_completed", "the former one runs again"), ("rollback_paused", "it is rollback paused")]
)
def test_a_service_that_was_taken_back_is_one_line(monkeypatch: pytest.MonkeyPatch, state: str, said: str) -> None:
    service = {"Spec": {"Name": "shop_worker"}, "UpdateStatus": {"State": state}}
    monkeypatch.setattr(swarm, "_services", lambda _: [service])
    monkeypatch.setattr(swarm, "_running", lambda _: {})
    monkeypatch.setattr(swarm, "_why", lambda _: "unhealthy container")
    _, why = unless_refused(lambda: swarm._wait("shop"))
    assert why == f"shop_worker: the new one did not become healthy (unhealthy container); {said}"


def test_a_slow_engine_is_not_taken_for_a_stack_that_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long its answers take, or if one is lost. The clock is the test's: each look at it takes 20 s."""
    clock = count(0, 20)
    service = {"Spec": {"Name": "shop_worker", "Mode": {"Replicated": {"Replicas": 1}}}}
    services: list[list[dict[str, Any]]] = [[service], [], [service], [service], [service]]
    answers = [{}, {}, {}, {"shop_worker": ["one"]}]
    monkeypatch.setattr(swarm, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    monkeypatch.setattr(swarm, "_services", lambda _: services.pop(0))
    monkeypatch.setattr(swarm, "_running", lambda _: answers.pop(0))
    monkeypatch.setattr(swarm, "_why", lambda _: "no such image")
    swarm._wait("shop")
    assert not answers


def test_passwords_that_were_not_listed_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones would replace all services. The answers are not an engine's, which fails so only when it is busy."""
    said: list[tuple[str, ...]] = []

    def ask(*argv: str) -> subprocess.CompletedProcess[str]:
        said.append(argv)
        return subprocess.CompletedProcess(argv, 1, "", "error during connect")

    monkeypatch.setattr(swarm, "ask", ask)
    monkeypatch.setattr(swarm, "time", SimpleNamespace(sleep=lambda _: None))
    _, why = unless_refused(lambda: swarm._passwords("shop", {"broker.worker": ""}, renew=False))
    assert why == "the swarm did not list its secrets: error during connect"
    assert len(said) == swarm.TRIES
