"""`make k8s`: a folder for `kubectl apply -k`: a copy of deploy/kubernetes/, a folder for each group of workers, and a list of
components. What is in the list decides; the folder needs nothing else of this project.
"""

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from celery_kit.base import times
from celery_kit.base.choices import TASK_TIME_LIMIT, task_time_limit
from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate.groups import Group, longest
from celery_kit.operate.stacks.docker import Facts
from celery_kit.pools.table import POOLS

HOME = ROOT / "deploy/kubernetes"
OUT = ".kit/kubernetes"
#: The first line of a folder's kustomization.yaml. Without it, a folder is somebody else's.
MADE = "# Made by `make k8s`, which writes it again."
#: Folders of a rendered folder that are written again.
OURS = ("base", "components", "groups", "servers", "stack", "worker")
KUSTOMIZATION = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
#: Servers of a user's own: their URLs hold passwords, and are in the Secret `environment`.
URLS = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "ONCE_URL")
#: Variables that components set, or this module by group.
ELSEWHERE = ("BACKEND", "SECURE", "CELERY_WORKER_QUEUES", *URLS)
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: Units of Compose, in those of Kubernetes.
UNITS = {"": "", "b": "", "k": "Ki", "m": "Mi", "g": "Gi"}


@dataclass(frozen=True)
class Wanted:
    """A combination. `images`: by service, as Compose names it. `prometheus`: its URL, which the autoscaler asks.

    `own`: those of :data:`URLS` that are set: these servers are not rendered. `egress`: workers reach more than the servers.
    """

    broker: str
    backend: str
    groups: Sequence[Group]
    images: Mapping[str, str]
    secure: str = ""
    monitor: bool = False
    autoscale: bool = False
    namespace: str = ""
    prometheus: str = ""
    own: Sequence[str] = ()
    egress: bool = False


def components(wanted: Wanted) -> list[str]:
    """The components of a combination, in order: a broker's own part of one comes after it."""
    extras = (
        ["outside"] * bool(wanted.own or wanted.egress)
        + ["monitor"] * wanted.monitor
        + ["idle-first"] * wanted.autoscale
        + ["restricted"]
    )
    extras += ["secure"] * bool(wanted.secure) + ["mutual"] * (wanted.secure == "mutual")
    rendered = ((URLS[0], f"broker/{wanted.broker}"), (URLS[1], f"backend/{wanted.backend}"))
    servers = [name for url, name in rendered if url not in wanted.own]
    own = {extra: [f"{one}/{extra}" for one in servers if (HOME / "components" / one / extra).is_dir()] for extra in extras}
    return [*servers, *(name for extra in extras for name in (extra, *own[extra]))]


def check(wanted: Wanted, environ: Mapping[str, str]) -> None:
    """Refuse what cannot be rendered. `environ`: the settings of `.env` and of the environment."""
    if wanted.namespace and not NAME.fullmatch(wanted.namespace):
        refuse(f"NAMESPACE={wanted.namespace} is not allowed; small letters, digits and -, 63 at most")
    if wanted.autoscale and not wanted.monitor:
        refuse("AUTOSCALE=1 needs MONITOR=1: the autoscaler asks for the metrics of the monitor")
    for one in wanted.groups:
        if wanted.autoscale and not concurrency(one, environ):
            refuse(
                f"AUTOSCALE=1: {_called(one)} runs as many tasks at once as its node has cores, which is not known here; "
                "give it concurrency or cpus (docs/groups.md), or WORKER_CONCURRENCY"
            )


def write(folder: Path, wanted: Wanted, environ: Mapping[str, str]) -> None:
    """Write the folder again. Other files in it stay. Refuses a folder that is somebody else's, or that cannot be written."""
    check(wanted, environ)
    top = folder / "kustomization.yaml"
    made = _patches(wanted)
    for one in wanted.groups:
        made |= {f"groups/{one.name or 'worker'}/{name}": part for name, part in _group(one, wanted, environ).items()}
    listed = _top(wanted, environ)
    try:
        if folder.exists() and any(folder.iterdir()) and not (top.exists() and top.read_text().startswith(MADE)):
            refuse(f"OUT={folder} holds other files than those of 'make k8s'; name a folder of its own")
        _dump(top, listed, first=MADE)
        for name in OURS:
            shutil.rmtree(folder / name, ignore_errors=True)
        # Links into deploy/ become files: kustomize reads none outside of a folder.
        shutil.copytree(HOME, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("crds.yaml"))
        for broker in BROKERS.values():
            if broker.manifests:
                _dump(folder / f"components/broker/{broker.name}/users.yaml", *broker.manifests())
        for name, part in made.items():
            _dump(folder / name, part)
    except OSError as error:
        refuse(f"OUT={folder} cannot be written: {error.strerror}")


def _dump(file: Path, *made: Facts, first: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump_all(made, sort_keys=False, width=1_000)
    file.write_text(f"{first}\n{text}" if first else text)


def _top(wanted: Wanted, environ: Mapping[str, str]) -> Facts:
    given = {name: environ[name] for name in settings() if environ.get(name)}
    timeout = times.CONSUMER_TIMEOUT
    limit = longest(wanted.groups, _limit(environ))
    servers = {timeout.name: str(1_000 * times.seconds(timeout, limit, environ))}
    return {
        **KUSTOMIZATION,
        **({"namespace": wanted.namespace} if wanted.namespace else {}),
        "resources": [
            *["stack/namespace.yaml"] * bool(wanted.namespace),
            "base",
            *(f"groups/{one.name or 'worker'}" for one in wanted.groups),
        ],
        "components": [f"components/{name}" for name in components(wanted)],
        "configMapGenerator": [_merged("settings", given), _merged("servers", servers)],
        "patches": [{"path": name} for name in _patches(wanted) if name != "stack/namespace.yaml"],
        "labels": [{"pairs": {"app.kubernetes.io/part-of": "celery-kit"}}],
    }


def settings() -> list[str]:
    """The variables that a worker's container gets from the settings: those of Compose's, but for what components set."""
    service = yaml.safe_load((ROOT / "deploy/compose/app.yaml").read_text())["services"]["worker"]
    return [name for name in service["environment"] if name not in ELSEWHERE]


def _merged(name: str, values: Mapping[str, str]) -> Facts:
    return {"name": name, "behavior": "merge", "literals": [f"{key}={value}" for key, value in values.items()]}


def _patches(wanted: Wanted) -> Facts:
    """By file: the namespace, with the rules that its pods must keep, and the images that are not a group's."""
    images = {"beat": wanted.images["beat"]}
    if wanted.monitor:
        images |= {name: wanted.images[name] for name in ("exporter", "flower")}
    if wanted.autoscale:
        images["idle-first"] = wanted.images["exporter"]
    found = {f"stack/{name}.yaml": _workload(name, {"image": image}) for name, image in images.items()}
    if wanted.namespace:
        rules = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        about = {"name": wanted.namespace, "labels": rules}
        found["stack/namespace.yaml"] = {"apiVersion": "v1", "kind": "Namespace", "metadata": about}
    return found


def _workload(name: str, container: Facts, spec: Facts | None = None, **pod: object) -> Facts:
    """A patch of a Deployment: of its container, of its own `spec`, and of its pods'."""
    template = {"spec": {**pod, "containers": [{"name": "main", **container}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {**(spec or {}), "template": template},
    }


def _group(group: Group, wanted: Wanted, environ: Mapping[str, str]) -> dict[str, Facts]:
    """The files of a group: workers and, with the autoscaler, its rules, made from those of all groups."""
    limit = _limit(environ) if group.time_limit is None else group.time_limit
    variables = group.environ() | ({"CELERY_WORKER_HOSTNAME": f"{group.name}@%h"} if group.name else {})
    if not group.name and (queues := environ.get("QUEUES")):
        variables["CELERY_WORKER_QUEUES"] = queues
    container = {
        "image": wanted.images[group.service],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": _resources(group, environ),
    }
    files = {
        "worker.yaml": _workload(
            "worker",
            container,
            {} if wanted.autoscale else {"replicas": group.scale[0]},
            terminationGracePeriodSeconds=times.seconds(times.STOP_GRACE_PERIOD, limit, environ),
        )
    }
    if wanted.autoscale:
        files["scaler.yaml"] = _scaler(group, wanted, environ)
    named = {"nameSuffix": f"-{group.name}"} if group.name else {}
    pairs = {"celery-kit.group": group.name or "worker"}
    top = {
        **KUSTOMIZATION,
        "resources": ["../../worker"],
        **({"components": ["../../components/autoscaler"]} if wanted.autoscale else {}),
        **named,
        "labels": [{"pairs": pairs, "includeSelectors": True}],
        "patches": [{"path": name} for name in files],
    }
    return {"kustomization.yaml": top, **files}


def _limit(environ: Mapping[str, str]) -> int:
    return task_time_limit(environ, TASK_TIME_LIMIT)


def _resources(group: Group, environ: Mapping[str, str]) -> Facts:
    """What a worker may use; what its group names itself is reserved for it, too."""
    memory = _quantity(group.memory or environ.get("WORKER_MEMORY") or "4g")
    cpus = group.cpus or float(environ.get("WORKER_CPUS") or 0)
    found: Facts = {"requests": {}, "limits": {"memory": memory}}
    if group.memory:
        found["requests"]["memory"] = memory
    if cpus:
        found["limits"]["cpu"] = found["requests"]["cpu"] = f"{cpus:g}"
    return {name: value for name, value in found.items() if value}


def _quantity(given: str) -> str:
    found = re.fullmatch(r"([0-9]+)([bkmg]?)b?", given.lower())
    if not found:
        refuse(f"WORKER_MEMORY={given} is not allowed; a number with a unit, such as 512m or 2g")
    return found[1] + UNITS[found[2]]


def concurrency(group: Group, environ: Mapping[str, str]) -> int:
    """How many tasks a worker of a group runs at once; 0: as many as its node has cores."""
    given = environ.get("WORKER_CONCURRENCY") or ""
    own = group.concurrency or (int(given) if given.isdecimal() else POOLS[group.pool].concurrency)
    return own or math.ceil(group.cpus or float(environ.get("WORKER_CPUS") or 0))


def _scaler(group: Group, wanted: Wanted, environ: Mapping[str, str]) -> Facts:
    least, most = group.scale
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "worker"},
        "spec": {
            "scaleTargetRef": {"name": group.service},
            "minReplicaCount": least,
            "maxReplicaCount": most,
            "triggers": list(triggers(group, wanted.namespace, wanted.prometheus, concurrency(group, environ))),
        },
    }


def triggers(group: Group, namespace: str, prometheus: str, tasks: int) -> Iterator[Facts]:
    """What the autoscaler asks Prometheus for a group; the answer that wants most workers wins.

    `backlog`: a worker for so many tasks, `tasks`, that wait or that workers hold, prefetched or running. With a target wait:
    `wait`, what one task in twenty waited at least in the last minute, and `oldest`, how long the next one has waited, which
    also tells while no task starts. The workers are multiplied by how many times longer than the target these are. What waits
    in a paused queue counts in neither.
    """
    queues = "|".join(re.escape(name) for name in group.queues)
    of = ",".join([f"queue=~{json.dumps(queues)}"] * bool(queues) + [f'namespace="{namespace}"'] * bool(namespace))
    running = f"unless celery_kit_queue_paused{{{of}}} == 1"
    held = f"(sum(celery_kit_queue_waiting{{{of}}} {running}) or vector(0)) + sum(celery_kit_queue_unacknowledged{{{of}}})"
    yield _trigger("backlog", "AverageValue", prometheus, held, tasks)
    if group.target_wait:
        waits = f"sum by (le) (rate(celery_kit_task_wait_seconds_bucket{{{of}}}[1m]))"
        # Without any start there is no quantile, NaN, and so no answer.
        yield _trigger("wait", "Value", prometheus, f"histogram_quantile(0.95, {waits}) >= 0", group.target_wait)
        yield _trigger(
            "oldest", "Value", prometheus, f"max(celery_kit_queue_oldest_seconds{{{of}}} {running})", group.target_wait
        )


def _trigger(name: str, kind: str, prometheus: str, query: str, threshold: float) -> Facts:
    about = {"serverAddress": prometheus, "query": query, "threshold": f"{threshold:g}"}
    return {"type": "prometheus", "name": name, "metricType": kind, "metadata": about}


def _called(group: Group) -> str:
    return f"group {group.name}" if group.name else "the worker"


def notes(wanted: Wanted) -> Iterable[str]:
    """What a user should know of what was rendered, a line each."""
    for one in wanted.groups:
        if one.scale[1] > one.scale[0] and not wanted.autoscale:
            yield f"{_called(one)} has {one.scale[0]} workers: AUTOSCALE=1 lets it grow to {one.scale[1]}"
    if not (wanted.own or wanted.egress):
        yield "workers reach the broker, the results server and DNS alone; EGRESS=1 lets them reach what their tasks call"
    if local := sorted({one for one in wanted.images.values() if "/" not in one}):
        yield f"{', '.join(local)}: an image of this machine alone; REGISTRY= or PINS= names one that a cluster can pull"
