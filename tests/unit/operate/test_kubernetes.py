"""What `make k8s` renders: every combination fits the schemas and keeps the rules, and each rule finds what breaks it.

Folders are rendered by kubectl, and no cluster is asked. The pods themselves: tests/deploy/test_kubernetes.py.
"""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from celery_kit.base import times
from celery_kit.base.choices import SECURE
from celery_kit.base.refusals import unless_refused
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate import groups
from celery_kit.operate.cli import cli
from celery_kit.operate.kubernetes import secrets
from celery_kit.operate.kubernetes.check import check, mistakes, rendered
from celery_kit.operate.kubernetes.objects import Rendered
from celery_kit.operate.kubernetes.render import HOME, Wanted, components, notes, settings, write
from celery_kit.operate.kubernetes.rules import RULES, findings
from celery_kit.operate.stacks import certificates
from celery_kit.pools.table import POOLS
from celery_kit.results import BACKENDS

STACKS = [name for name in BROKERS if (HOME / "components/broker" / name).is_dir()]
MONITOR = dict.fromkeys(("exporter", "flower"), "registry.example.com/shop:monitor-1.4")
TABLE = """
[groups.default]
queues = ["celery"]
concurrency = 4

[groups.mail]
queues = ["mail.high", "mail-low"]
pool = "gevent"
scale = {min = 1, max = 4}
target_wait = 5
time_limit = 60

[groups.images]
queues = ["images"]
pool = "threads"
concurrency = 2
time_limit = 900
memory = "2g"
cpus = 1.5
max_tasks_per_child = 100
""".replace("max_tasks_per_child = 100\n", "")
Objects = list[dict[str, Any]]


def wanted(folder: Path, text: str = TABLE, **given: Any) -> Wanted:
    (folder / "workers.toml").write_text(text)
    table = groups.read(folder, "prefork", 1)
    axes = {"broker": STACKS[0], "backend": "redis", "namespace": "shop", "prometheus": "http://prometheus:9090"}
    workers = given.get("groups", table.groups)
    images = {"beat": image(workers[0].pool), **{one.service: image(one.pool) for one in workers}, **MONITOR}
    return Wanted(**{**axes, "groups": workers, "images": images, **given})


def image(pool: str) -> str:
    return f"registry.example.com/shop:{pool}-1.4"


def of(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pod(objects: Objects, name: str = "worker-mail") -> dict[str, Any]:
    found: dict[str, Any] = of(objects, "Deployment", name)["spec"]["template"]["spec"]
    return found


def main(objects: Objects, name: str = "worker-mail") -> dict[str, Any]:
    container: dict[str, Any]
    (container,) = pod(objects, name)["containers"]
    return container


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """What a stack with everything renders."""
    folder = tmp_path_factory.mktemp("whole")
    given = wanted(tmp_path_factory.mktemp("app"), secure="mutual", monitor=True, autoscale=True)
    write(folder, given, {})
    assert not list(check(folder))
    return rendered(folder)


@pytest.mark.parametrize(("broker", "backend", "secure"), [*product(STACKS, BACKENDS, ("", *SECURE))])
def test_every_combination_renders_and_keeps_the_rules(tmp_path: Path, broker: str, backend: str, secure: str) -> None:
    """Each with a group of every pool, so that this is every broker, backend, pool and kind of security."""
    text = "".join(f"[groups.{pool}]\nqueues = ['{pool}']\npool = '{pool}'\n" for pool in POOLS)
    given = wanted(tmp_path, text, broker=broker, backend=backend, secure=secure)
    write(tmp_path / "out", given, {})
    assert not list(check(tmp_path / "out"))
    stack = Rendered(rendered(tmp_path / "out"))
    workers = {one.labels["celery-kit.group"]: one for one in stack.ours if one.role == "worker"}
    assert {name: one.containers[0]["image"] for name, one in workers.items()} == {pool: image(pool) for pool in POOLS}
    for one in workers.values():
        assert stack.variable(one.containers[0], "BROKER") == broker
        assert stack.variable(one.containers[0], "BACKEND") == backend
        assert stack.variable(one.containers[0], "SECURE") == secure
    assert {one.role for one in stack.pods} == {"worker", "beat", "broker", *["results"] * BACKENDS[backend].has_server}


@pytest.mark.parametrize("pool", POOLS)
def test_without_a_table_there_is_one_group(tmp_path: Path, pool: str) -> None:
    write(tmp_path / "out", wanted(tmp_path, groups=[groups.Group(pool=pool, scale=(3, 3))], namespace=""), {"QUEUES": "a,b"})
    assert not list(check(tmp_path / "out"))
    objects = rendered(tmp_path / "out")
    assert of(objects, "Deployment", "worker")["spec"]["replicas"] == 3
    assert main(objects, "worker")["image"] == image(pool)
    assert {"name": "CELERY_WORKER_QUEUES", "value": "a,b"} in main(objects, "worker")["env"]
    assert "namespace" not in of(objects, "Deployment", "worker")["metadata"]


def test_three_groups_of_three_pools_are_as_the_table_says(tmp_path: Path) -> None:
    write(tmp_path / "out", given := wanted(tmp_path), {"STOP_GRACE_PERIOD": "1000s"})
    objects = rendered(tmp_path / "out")
    for one in given.groups:
        deployment, container = of(objects, "Deployment", one.service), main(objects, one.service)
        variables = {each["name"]: each.get("value") for each in container["env"]}
        assert deployment["spec"]["replicas"] == one.scale[0]
        assert container["image"] == image(one.pool)
        assert one.environ().items() <= variables.items()
        assert variables["CELERY_WORKER_QUEUES"] == ",".join(one.queues)
        assert variables["CELERY_WORKER_HOSTNAME"] == f"{one.name}@%h"
        assert pod(objects, one.service)["terminationGracePeriodSeconds"] == 1_000
    resources = main(objects, "worker-images")["resources"]
    assert resources == {"requests": {"cpu": "1.5", "memory": "2Gi"}, "limits": {"cpu": "1.5", "memory": "2Gi"}}
    assert main(objects, "worker-mail")["resources"]["limits"] == {"memory": "4Gi"}
    assert [re.split("[:;]", line)[0] for line in notes(given)] == [
        "group mail has 1 workers",
        "workers reach the broker, the results server and DNS alone",
    ]


def test_grace_and_the_brokers_patience_follow_from_the_time_limits(tmp_path: Path) -> None:
    write(tmp_path / "out", wanted(tmp_path), {"TASK_TIME_LIMIT": "100"})
    objects = rendered(tmp_path / "out")
    grace = {name: pod(objects, f"worker-{name}")["terminationGracePeriodSeconds"] for name in ("default", "mail", "images")}
    assert grace == {name: times.STOP_GRACE_PERIOD.of(limit) for name, limit in zip(grace, (100, 60, 900), strict=True)}
    (servers,) = (one["data"] for one in objects if one["metadata"]["name"].startswith("servers-"))
    assert servers["CONSUMER_TIMEOUT"] == str(1_000 * times.CONSUMER_TIMEOUT.of(900))


def test_a_group_grows_by_how_long_its_queues_wait_and_by_its_backlog(whole: Objects) -> None:
    """The metrics are those that the exporter has."""
    scaler = of(whole, "ScaledObject", "worker-mail")["spec"]
    assert (scaler["scaleTargetRef"]["name"], scaler["minReplicaCount"], scaler["maxReplicaCount"]) == ("worker-mail", 1, 4)
    asked = {one["name"]: (one["metricType"], one["metadata"]["threshold"]) for one in scaler["triggers"]}
    assert asked == {"backlog": ("AverageValue", "100"), "wait": ("Value", "5"), "oldest": ("Value", "5")}
    queries = [one["metadata"]["query"] for one in scaler["triggers"]]
    page = (ROOT / "docs/monitoring.md").read_text()
    for query in queries:
        assert 'queue=~"mail\\\\.high|mail\\\\-low",namespace="shop"' in query
        assert all(f"`{name.removesuffix('_bucket')}`" in page for name in re.findall(r"celery_kit_\w+", query))
    assert "celery_kit_queue_waiting{" in queries[0] and "celery_kit_queue_unacknowledged{" in queries[0]
    assert [one["name"] for one in of(whole, "ScaledObject", "worker-default")["spec"]["triggers"]] == ["backlog"]
    assert "replicas" not in of(whole, "Deployment", "worker-mail")["spec"]


def test_the_users_of_a_broker_are_those_of_its_table(tmp_path: Path) -> None:
    """As its start.sh makes them in a stack of containers."""
    for name in STACKS:
        if not (made := BROKERS[name].manifests):
            continue
        table = (ROOT / f"deploy/brokers/{name}/permissions").read_text()
        rows = [line.split() for line in table.splitlines() if line and line[0] != "#"]
        users = {one["metadata"]["name"]: one["spec"] for one in map(dict[str, Any], made()) if one["kind"] == "User"}
        rights = {one["metadata"]["name"]: one["spec"] for one in map(dict[str, Any], made()) if one["kind"] == "Permission"}
        assert [*users] == [*rights] == [f"broker-{role}" for role, *_ in rows]
        for role, tag, *patterns in rows:
            spec = users[f"broker-{role}"]
            assert spec.get("tags", ["-"]) == [tag] and spec["importCredentialsSecret"] == {"name": f"broker-{role}"}
            found = rights[f"broker-{role}"]["permissions"]
            for kind, pattern in zip(("configure", "write", "read"), patterns, strict=True):
                before, replies, after = pattern.partition("@REPLIES@")
                assert found[kind].startswith(before) and found[kind].endswith(after) and "@" not in found[kind]
                if replies:
                    assert re.match(found[kind], "0b0b0b0b-0000-4000-8000-00000000aaaa")


def test_the_base_names_no_product_and_nothing_is_deleted() -> None:
    names = re.compile("|".join(one.removesuffix("mq") for one in STACKS), re.IGNORECASE)
    for file in HOME.rglob("*.yaml"):
        place = file.relative_to(HOME)
        if place.parts[0] in ("base", "worker") or (
            place.parts[0] == "components" and place.parts[1] not in ("broker", "backend")
        ):
            assert not names.search(file.read_text()), place
        assert not re.search(r"\$patch|op: *remove", file.read_text()), place


def test_a_combination_is_a_list_of_components() -> None:
    listed = components(Wanted("rabbitmq", "rpc", (), {}, secure="mutual", monitor=True, autoscale=True))
    assert listed == [
        *("broker/rabbitmq", "backend/rpc", "monitor", "idle-first", "restricted"),
        *("secure", "broker/rabbitmq/secure", "mutual", "broker/rabbitmq/mutual"),
    ]


# Each rule finds what breaks it.


def set_in(pick: Callable[[Objects], dict[str, Any]], **values: Any) -> Callable[[Objects], None]:
    return lambda objects: pick(objects).update(values)


def drop(pick: Callable[[Objects], dict[str, Any]], name: str) -> Callable[[Objects], None]:
    return lambda objects: pick(objects).__delitem__(name)


def without(kind: str, name: str) -> Callable[[Objects], None]:
    return lambda objects: objects.remove(of(objects, kind, name))


def env(name: str, value: str) -> Callable[[Objects], None]:
    def change(objects: Objects) -> None:
        (one,) = (one for one in main(objects)["env"] if one["name"] == name)
        one["value"] = value

    return change


def volume(name: str, **values: Any) -> Callable[[Objects], None]:
    def change(objects: Objects) -> None:
        (one,) = (one for one in pod(objects)["volumes"] if one["name"] == name)
        one.clear()
        one.update(name=name, **values)

    return change


def spec(kind: str, name: str) -> Callable[[Objects], dict[str, Any]]:
    def pick(objects: Objects) -> dict[str, Any]:
        found: dict[str, Any] = of(objects, kind, name)["spec"]
        return found

    return pick


PLANTED: list[tuple[str, str, Callable[[Objects], None]]] = [
    ("image-version", "shop:latest", set_in(main, image="registry.example.com/shop:latest")),
    ("image-version", "shop", set_in(main, image="registry.example.com/shop")),
    ("non-root", "worker-mail", set_in(lambda o: pod(o)["securityContext"], runAsUser=0)),
    ("non-root", "worker-mail", drop(lambda o: pod(o)["securityContext"], "runAsNonRoot")),
    ("no-escalation", "worker-mail", set_in(lambda o: main(o)["securityContext"], allowPrivilegeEscalation=True)),
    ("no-escalation", "worker-mail", set_in(lambda o: main(o)["securityContext"], privileged=True)),
    ("no-capabilities", "worker-mail", set_in(lambda o: main(o)["securityContext"]["capabilities"], add=["NET_ADMIN"])),
    ("seccomp", "worker-mail", set_in(lambda o: pod(o)["securityContext"]["seccompProfile"], type="Unconfined")),
    ("read-only-root", "worker-mail", drop(lambda o: main(o)["securityContext"], "readOnlyRootFilesystem")),
    ("host", "hostNetwork", set_in(pod, hostNetwork=True)),
    ("host", "hostPath", volume("data", hostPath={"path": "/"})),
    ("no-token", "worker-mail", set_in(pod, automountServiceAccountToken=True)),
    ("no-token", "worker-mail", volume("data", projected={"sources": [{"serviceAccountToken": {"path": "token"}}]})),
    ("no-token", "idle-first", without("RoleBinding", "idle-first")),
    ("grace-period", "60", set_in(pod, terminationGracePeriodSeconds=60)),
    ("grace-period", "900", env("TASK_TIME_LIMIT", "900")),
    ("probes", "livenessProbe", drop(main, "livenessProbe")),
    ("resources", "limits.memory", drop(lambda o: main(o)["resources"], "limits")),
    ("resources", "requests.cpu", drop(lambda o: main(o)["resources"]["requests"], "cpu")),
    ("disruption-budget", "is of 0 budgets", without("PodDisruptionBudget", "worker-mail")),
    (
        "disruption-budget",
        "selects no pods",
        set_in(spec("PodDisruptionBudget", "worker-mail"), selector={"matchLabels": {"a": "b"}}),
    ),
    ("selectors", "Service/broker", set_in(spec("Service", "broker"), selector={"celery-kit.role": "brokers"})),
    ("selectors", "worker-mail", set_in(spec("Deployment", "worker-mail"), selector={"matchLabels": {"a": "b"}})),
    (
        "selectors",
        "2 workloads",
        set_in(spec("Deployment", "worker-mail"), selector={"matchLabels": {"celery-kit.role": "worker"}}),
    ),
    ("selectors", "no Service", set_in(spec("ServiceMonitor", "exporter"), selector={"matchLabels": {"a": "b"}})),
    ("selectors", "spread", set_in(lambda o: pod(o)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"], a="b")),
    ("network", "ingress", without("NetworkPolicy", "default-deny")),
    (
        "network",
        "selects no pods",
        set_in(spec("NetworkPolicy", "monitor"), podSelector={"matchLabels": {"celery-kit.role": "monitors"}}),
    ),
    (
        "servers-closed",
        "to everybody",
        lambda o: of(o, "NetworkPolicy", "results-redis")["spec"]["ingress"].append({"ports": [{"port": 6379}]}),
    ),
    (
        "servers-closed",
        "to everybody",
        lambda o: of(o, "NetworkPolicy", "results-redis")["spec"]["ingress"][0]["from"].append({"namespaceSelector": {}}),
    ),
    ("servers-closed", "is closed to", without("NetworkPolicy", "results-redis")),
    ("servers-closed", "may not reach", without("NetworkPolicy", "to-servers")),
    ("references", "Secret broker-workers", volume("broker", secret={"secretName": "broker-workers"})),
    ("references", "has no key", volume("tls", secret={"secretName": "client-tls", "items": [{"key": "key", "path": "key"}]})),
    ("references", "ConfigMap nothing", set_in(main, envFrom=[{"configMapRef": {"name": "nothing"}}])),
    ("references", "ServiceAccount nobody", set_in(pod, serviceAccountName="nobody")),
    ("references", "PersistentVolumeClaim beat", without("PersistentVolumeClaim", "beat")),
    ("own-account", "broker-admin", volume("broker", secret={"secretName": "broker-admin"})),
    ("queues", "images is consumed by 2", env("CELERY_WORKER_QUEUES", "mail,images")),
    ("queues", "names no queues", env("CELERY_WORKER_QUEUES", "")),
    (
        "autoscaler",
        "Deployment nobody",
        set_in(lambda o: spec("ScaledObject", "worker-mail")(o)["scaleTargetRef"], name="nobody"),
    ),
    ("autoscaler", "from 5 to 4", set_in(spec("ScaledObject", "worker-mail"), minReplicaCount=5)),
    ("autoscaler", "asks nothing", set_in(spec("ScaledObject", "worker-mail"), triggers=[])),
    ("autoscaler", "has replicas", set_in(spec("Deployment", "worker-mail"), replicas=2)),
    ("one-beat", "Deployment/beat", set_in(spec("Deployment", "beat"), replicas=2)),
    ("one-beat", "Deployment/beat", set_in(spec("Deployment", "beat"), strategy={"type": "RollingUpdate"})),
    ("one-beat", "0 workloads", without("Deployment", "beat")),
    ("tls", "worker-mail", set_in(main, volumeMounts=[])),
]


@pytest.mark.parametrize(("name", "said", "plant"), PLANTED, ids=[f"{name}-{said}" for name, said, _ in PLANTED])
def test_a_planted_error_is_found_by_its_rule(whole: Objects, name: str, said: str, plant: Callable[[Objects], None]) -> None:
    objects = deepcopy(whole)
    plant(objects)
    assert not [mistake for one in objects for mistake in mistakes(one)]
    found = list(findings(objects))
    assert any(by == name and said in what for by, what in found), found


def test_versions_side_by_side_may_have_the_same_queues(whole: Objects) -> None:
    objects = deepcopy(whole)
    env("CELERY_WORKER_QUEUES", "celery")(objects)
    assert not list(findings(objects))


def test_each_rule_has_a_planted_error() -> None:
    assert {name for name, *_ in PLANTED} == RULES.keys()


SCHEMAS: list[tuple[str, Callable[[Objects], None]]] = [
    ("'terminationGracePeriod' was unexpected", set_in(pod, terminationGracePeriod=60)),
    ("is not of type 'integer'", set_in(spec("Deployment", "worker-mail"), replicas="two")),
    ("'containers' is a required property", drop(pod, "containers")),
    ("'maxReplicas' was unexpected", set_in(spec("ScaledObject", "worker-mail"), maxReplicas=4)),
    (
        "'threshold' is a required",
        drop(lambda o: spec("ScaledObject", "worker-mail")(o)["triggers"][0]["metadata"], "threshold"),
    ),
    ("'endpoint' was unexpected", set_in(spec("ServiceMonitor", "exporter"), endpoint=[])),
    ("'selectors' was unexpected", set_in(spec("PodDisruptionBudget", "worker-mail"), selectors={})),
    ("apps/v2 Deployment is not known", lambda o: of(o, "Deployment", "beat").update(apiVersion="apps/v2")),
]


@pytest.mark.parametrize(("said", "plant"), SCHEMAS, ids=[said for said, _ in SCHEMAS])
def test_what_no_schema_knows_is_found(whole: Objects, said: str, plant: Callable[[Objects], None]) -> None:
    objects = deepcopy(whole)
    plant(objects)
    found = [mistake for one in objects for mistake in mistakes(one)]
    assert any(said in one for one in found), found


def test_each_schema_of_an_operator_is_strict_and_names_its_source(whole: Objects, tmp_path: Path) -> None:
    known = {one["kind"]: one for one in yaml.safe_load_all((HOME / "crds.yaml").read_text())}
    assert all(one["source"] for one in known.values())
    objects = list(whole)
    for broker in STACKS:
        write(tmp_path / broker, wanted(tmp_path, broker=broker), {})
        objects += rendered(tmp_path / broker)
    used = {one["kind"]: one for one in objects if one["kind"] in known}
    assert used.keys() == known.keys()
    for one in used.values():
        assert any("was unexpected" in what for what in mistakes({**one, "spec": {**one["spec"], "nonsense": 1}}))


# The commands.


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    for name in ("BROKER", "POOL", "BACKEND", "SECURE", "NAMESPACE", "OUT", "REGISTRY", "PINS", "SCALE", "CELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    yield lambda *words, **variables: CliRunner(env=variables).invoke(cli, words)


def test_what_is_typed_is_rendered_and_checked(typed: Callable[..., Any], tmp_path: Path) -> None:
    given = {"BROKER": STACKS[0], "POOL": "gevent", "NAMESPACE": "shop", "OUT": str(tmp_path / "out"), "SECURE": "1"}
    done = typed("k8s", **given, REGISTRY="registry.example.com/shop", TAG="1.4")
    assert done.exit_code == 0, done.output
    last = [line.strip() for line in done.output.splitlines()[-4:]]
    assert last == [
        f"make k8s-check OUT={tmp_path}/out",
        "kubectl create namespace shop",
        "make k8s-secrets NAMESPACE=shop SECURE=1 | kubectl create -f -",
        f"kubectl apply -k {tmp_path}/out",
    ]
    objects = rendered(tmp_path / "out")
    assert main(objects, "worker")["image"] == main(objects, "beat")["image"] == "registry.example.com/shop:gevent-1.4"
    assert of(objects, "Namespace", "shop")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    done = typed("k8s-check", **given)
    assert (done.exit_code, done.output) == (0, f"{tmp_path}/out: renders, fits the schemas, and keeps every rule\n")
    assert json.loads(typed("k8s-check", **given, JSON="1").output) == {"folder": f"{tmp_path}/out", "findings": []}


def test_pinned_images_are_taken(typed: Callable[..., Any], tmp_path: Path) -> None:
    digest = f"registry.example.com/shop:solo@sha256:{'a' * 64}"
    (tmp_path / "pins.json").write_text(json.dumps({"images": {"solo": digest, "mail": digest}}))
    pins = str(tmp_path / "pins.json")
    done = typed("k8s", BROKER=STACKS[0], POOL="solo", PINS=pins, OUT=str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert main(rendered(tmp_path / "out"), "worker")["image"] == digest
    assert "cluster can pull" not in done.output


def test_a_group_with_a_version_has_its_image(typed: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "shop.py").touch()
    canary = "[groups.canary]\nqueues = ['celery']\npool = 'solo'\nversion = '2'\n"
    (tmp_path / "workers.toml").write_text(canary + canary.replace("canary", "stable").replace("version = '2'", ""))
    given = {"APP": "shop", "SOURCE": str(tmp_path), "BROKER": STACKS[0], "OUT": str(tmp_path / "out")}
    assert typed("k8s", **given, REGISTRY="registry.example.com/shop", TAG="1").exit_code == 0
    objects = rendered(tmp_path / "out")
    assert main(objects, "worker-canary")["image"] == "registry.example.com/shop:solo-2"
    assert main(objects, "worker-stable")["image"] == "registry.example.com/shop:solo-1"
    assert not list(check(tmp_path / "out"))


def test_findings_are_a_line_each_and_exit_with_1(typed: Callable[..., Any], tmp_path: Path) -> None:
    write(folder := tmp_path / "out", wanted(tmp_path), {})
    file = folder / "worker/deployment.yaml"
    file.write_text(
        file.read_text().replace("livenessProbe:", "lifecycle: {}\n          x-livenessProbe:").replace("x-l", "#l")
    )
    (folder / "mine.yaml").write_text("$patch: delete\n")
    done = typed("k8s-check", OUT=str(folder))
    assert done.exit_code == 1
    names = [line.partition(":")[0] for line in done.output.splitlines()]
    assert names == ["nothing-deleted", *["probes"] * 3]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"BROKER": "embedded"}, "BROKER=embedded is not known; allowed: "),
        ({"NAMESPACE": "Shop!"}, "NAMESPACE=Shop! is not allowed"),
        ({"SECURE": "yes"}, "SECURE=yes is not known"),
        ({"BEATS": "2"}, "BEATS=2: a rendered cluster has one beat, which Kubernetes starts again; take BEATS=1"),
        ({"AUTOSCALE": "1"}, "AUTOSCALE=1 needs MONITOR=1"),
        ({"AUTOSCALE": "1", "MONITOR": "1"}, "AUTOSCALE=1: the worker runs as many tasks at once as its node has cores"),
        ({"PINS": "pins.json", "REGISTRY": "a/b"}, "leave REGISTRY out"),
        ({"REGISTRY": "https://a/b"}, "REGISTRY=https://a/b is not allowed"),
        ({"REGISTRY": "a/b", "TAG": "1 4"}, "TAG=1 4 is not allowed"),
        ({"STOP_GRACE_PERIOD": "10s"}, "STOP_GRACE_PERIOD=10s contradicts"),
        ({"MAX_DELIVERIES": "99"}, "MAX_DELIVERIES=99 is not allowed"),
        ({"TIMEZONE": "Nowhere"}, "TIMEZONE=Nowhere is not known"),
        ({"WORKER_MEMORY": "much"}, "WORKER_MEMORY=much is not allowed"),
        ({"OUT": "app"}, "holds other files than those of 'make k8s'"),
        ({"OUT": "README.md/x"}, "cannot be written: "),
    ],
)
def test_what_cannot_be_rendered_is_refused(
    typed: Callable[..., Any], tmp_path: Path, variables: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = typed("k8s", **{"BROKER": STACKS[0], "OUT": str(tmp_path / "out"), **variables})
    assert done.exit_code == 2 and not (tmp_path / "out").exists()
    assert said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_what_is_no_folder_of_kustomize_is_refused(typed: Callable[..., Any], tmp_path: Path) -> None:
    done = typed("k8s-check", OUT=str(tmp_path))
    assert done.exit_code == 2 and "has no kustomization.yaml" in done.stderr
    (tmp_path / "kustomization.yaml").write_text("resources: [nothing.yaml]\n")
    done = typed("k8s-check", OUT=str(tmp_path))
    assert done.exit_code == 2 and "cannot be rendered: " in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_folder_is_written_again_and_keeps_what_is_yours(tmp_path: Path) -> None:
    write(out := tmp_path / "out", wanted(tmp_path), {})
    (out / "mine").mkdir()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write(out, wanted(tmp_path, TABLE.replace("groups.mail", "groups.post")), {})
    write(out, wanted(tmp_path, TABLE.replace("groups.mail", "groups.post"), namespace=""), {})
    assert not (out / "stack/namespace.yaml").exists()
    assert (out / "mine").is_dir() and (out / "groups/post").is_dir() and not (out / "groups/mail").exists()
    write(out, wanted(tmp_path), {})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not [path for path in out.rglob("*") if path.is_symlink()]


def test_the_secrets_are_those_that_are_named(
    typed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(certificates, "FOLDER", tmp_path / "tls")
    done = typed("k8s-secrets", NAMESPACE="shop", SECURE="1")
    found = {one["metadata"]["name"]: one for one in json.loads(done.stdout)["items"]}
    assert found.keys() | {"environment"} == secrets.SECRETS.keys()
    for name, one in found.items():
        assert not list(mistakes(one)) and one["metadata"]["namespace"] == "shop"
        assert set(one["stringData"]) == set(secrets.SECRETS[name] or ())
    account = found["broker-operator"]["stringData"]
    assert account["account"] == f"{account['password']}\nkit\n" and account["username"] == "kit"
    passwords = [one["stringData"]["password"] for one in found.values() if "password" in one["stringData"]]
    assert len({*passwords}) == len(passwords) == 13


def test_the_apps_own_variables_become_a_secret(typed: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "shop.py").touch()
    (tmp_path / "shop.env").write_text("SHOP_KEY=secret\n")
    codebase = {"APP": "shop", "SOURCE": str(tmp_path), "ENV_FILE": str(tmp_path / "shop.env")}
    done = typed("k8s-secrets", **codebase)
    assert json.loads(done.stdout)["items"][-1]["stringData"] == {"SHOP_KEY": "secret"}
    done = typed("k8s", **codebase, BROKER=STACKS[0], OUT=str(tmp_path / "out"))
    assert (
        f"ENV_FILE={tmp_path}/shop.env" in done.output and "SHOP_KEY" not in (tmp_path / "out/kustomization.yaml").read_text()
    )


def test_the_way_out_is_open_where_it_is_asked_for(tmp_path: Path) -> None:
    for egress in (False, True):
        write(tmp_path / "out", given := wanted(tmp_path, egress=egress), {})
        policies = Rendered(rendered(tmp_path / "out")).named("NetworkPolicy")
        assert ("outside" in policies) is egress and any("EGRESS=1" in line for line in notes(given)) is not egress
        assert not list(check(tmp_path / "out"))


def test_servers_of_your_own_are_not_rendered(typed: Callable[..., Any], tmp_path: Path) -> None:
    """Their URLs, with passwords, are in a Secret alone."""
    urls = {
        "CELERY_BROKER_URL": "sentinel://:secret@valkey:26379/0",
        "CELERY_RESULT_BACKEND": "rediss://:secret@results:6379/1",
    }
    done = typed("k8s", **urls, OUT=str(tmp_path / "out"))
    assert done.exit_code == 0 and "Note: CELERY_BROKER_URL, CELERY_RESULT_BACKEND: " in done.output
    assert not list(check(tmp_path / "out"))
    stack = Rendered(rendered(tmp_path / "out"))
    assert {one.role for one in stack.pods} == {"worker", "beat"}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "secret@" in path.read_text()]
    assert json.loads(typed("k8s-secrets", **urls).stdout)["items"][-1]["stringData"] == urls


def test_the_settings_are_those_of_a_stack_of_containers(tmp_path: Path) -> None:
    write(tmp_path / "out", wanted(tmp_path), {"TIMEZONE": "Europe/Berlin", "MAX_DELIVERIES": "3", "HOME": "/root"})
    stack = Rendered(rendered(tmp_path / "out"))
    container = main(stack.objects)  # type: ignore[arg-type]
    assert [stack.variable(container, name) for name in ("TIMEZONE", "MAX_DELIVERIES", "HOME")] == ["Europe/Berlin", "3", ""]
    assert {"ENGINE", "TASK_TIME_LIMIT", "SMTP_HOST"} <= {*settings()} and "CELERY_BROKER_URL" not in settings()


def test_without_kubectl_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from celery_kit.operate.kubernetes import check as module

    monkeypatch.setattr(module, "RENDERERS", (("no-such-program", "build"),))
    (tmp_path / "kustomization.yaml").touch()
    _, why = unless_refused(lambda: rendered(tmp_path))
    assert why.startswith("kubectl is not there")
