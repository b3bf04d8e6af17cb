"""What must be true of the objects that a folder renders: each rule by its name, with a finding a line."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from celery_kit.base.choices import TASK_TIME_LIMIT
from celery_kit.brokers.contract import ROLES
from celery_kit.operate.kubernetes.objects import ROLE, Pod, Rendered, dicts, labels_of, name_of, selects
from celery_kit.operate.kubernetes.secrets import SECRETS, SERVERS
from celery_kit.operate.stacks.docker import Facts

#: Kinds of volumes that Pod Security "restricted" allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
#: The roles of who connects to the servers.
CLIENTS = ("worker", "beat", "monitor")
IMAGE = re.compile(r"[^\s@]+(:(?!latest$)[\w.-]+|(:[\w.-]+)?@sha256:[0-9a-f]{64})")

Check = Callable[[Rendered], Iterable[str]]
#: The rules by name.
RULES: dict[str, Check] = {}


def rule(check: Check) -> Check:
    """Add a rule: its name is the function's, what it demands is the docstring."""
    RULES[check.__name__.strip("_").replace("_", "-")] = check
    return check


@rule
def image_version(stack: Rendered) -> Iterator[str]:
    """an image has a tag other than `latest`, or a digest"""
    for pod in stack.ours:
        yield from (f"{pod.owner}: {one['image']}" for one in pod.containers if not IMAGE.fullmatch(one["image"]))


@rule
def non_root(stack: Rendered) -> Iterator[str]:
    """no container runs as root"""
    for pod in stack.ours:
        about = pod.spec.get("securityContext", {})
        each = [{**about, **one.get("securityContext", {})} for one in pod.containers]
        if not all(one.get("runAsNonRoot") is True and one.get("runAsUser") != 0 for one in each):
            yield f"{pod.owner} may run as root: runAsNonRoot, and no runAsUser 0"


def _contexts(stack: Rendered, fits: Callable[[Facts, Facts], bool], what: str) -> Iterator[str]:
    """A finding for each pod that has a container whose security context, after its pod's, does not fit."""
    for pod in stack.ours:
        about = pod.spec.get("securityContext", {})
        if not all(fits(one.get("securityContext", {}), about) for one in pod.containers):
            yield f"{pod.owner}: {what}"


@rule
def no_escalation(stack: Rendered) -> Iterable[str]:
    """no program in a container can gain rights"""
    return _contexts(
        stack,
        lambda own, _: own.get("allowPrivilegeEscalation") is False and not own.get("privileged"),
        "allowPrivilegeEscalation: false is missing, or it is privileged",
    )


@rule
def no_capabilities(stack: Rendered) -> Iterable[str]:
    """a container has no capabilities"""

    def fits(own: Facts, _: Facts) -> bool:
        given = own.get("capabilities", {})
        return given.get("drop") == ["ALL"] and not given.get("add")

    return _contexts(stack, fits, "capabilities: {drop: [ALL]} alone is allowed")


@rule
def seccomp(stack: Rendered) -> Iterable[str]:
    """system calls are filtered by the runtime's profile"""
    kinds = ("RuntimeDefault", "Localhost")
    return _contexts(
        stack,
        lambda own, pod: (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") in kinds,
        f"seccompProfile is neither of {', '.join(kinds)}",
    )


@rule
def read_only_root(stack: Rendered) -> Iterable[str]:
    """a container cannot change its image's files"""
    return _contexts(stack, lambda own, _: own.get("readOnlyRootFilesystem") is True, "readOnlyRootFilesystem: true is missing")


@rule
def host(stack: Rendered) -> Iterator[str]:
    """a pod sees nothing of its node: no namespaces, paths or ports of it"""
    for pod in stack.ours:
        shared = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(name)]
        kinds = {kind for one in pod.spec.get("volumes", []) for kind in one if kind != "name"}
        ports = [one for container in pod.containers for one in container.get("ports", []) if one.get("hostPort")]
        if wrong := [*shared, *sorted(kinds - VOLUMES), *["hostPort"] * bool(ports)]:
            yield f"{pod.owner}: {', '.join(wrong)}"


@rule
def no_token(stack: Rendered) -> Iterator[str]:
    """a pod has no token of Kubernetes, unless its account has rights of its own"""
    bound = {one["name"] for binding in stack.of("RoleBinding") for one in binding.get("subjects", [])}
    for pod in stack.ours:
        mounted = any("serviceAccountToken" in part for part in dicts(pod.spec.get("volumes", [])))
        if pod.spec.get("serviceAccountName") in bound:
            continue
        if mounted or pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner} has a token: automountServiceAccountToken: false, and no volume with one"


@rule
def grace_period(stack: Rendered) -> Iterator[str]:
    """a worker that stops has longer than its longest task"""
    for pod in stack.ours:
        if pod.role == "worker":
            limit = int(stack.variable(pod.containers[0], "TASK_TIME_LIMIT") or TASK_TIME_LIMIT)
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            if grace <= limit:
                yield f"{pod.owner}: terminationGracePeriodSeconds {grace} is not longer than its time limit, {limit} s"


@rule
def probes(stack: Rendered) -> Iterator[str]:
    """a container is asked whether it lives, and whether it is ready"""
    for pod in stack.ours:
        missing = {name for name in ("livenessProbe", "readinessProbe") for one in pod.containers if name not in one}
        if missing:
            yield f"{pod.owner}: {', '.join(sorted(missing))} missing"


@rule
def resources(stack: Rendered) -> Iterator[str]:
    """a container reserves CPU and memory, and may not take more memory than its limit"""
    for pod in stack.ours:
        for one in pod.containers:
            given = one.get("resources", {})
            has = {f"{kind}.{name}" for kind in ("requests", "limits") for name in given.get(kind, {})}
            if missing := sorted({"requests.cpu", "requests.memory", "limits.memory"} - has):
                yield f"{pod.owner}: {', '.join(missing)} missing"


@rule
def disruption_budget(stack: Rendered) -> Iterator[str]:
    """a worker and a server are of one PodDisruptionBudget, and each budget is of some pods"""
    budgets = stack.of("PodDisruptionBudget")
    for one in budgets:
        if not any(selects(one["spec"].get("selector"), pod.labels) for pod in stack.pods):
            yield f"{name_of(one)} selects no pods"
    for pod in stack.pods:
        number = sum(selects(one["spec"].get("selector"), pod.labels) for one in budgets)
        if pod.role in ("worker", *SERVERS) and number != 1:
            yield f"{pod.owner} is of {number} budgets"


@rule
def selectors(stack: Rendered) -> Iterator[str]:
    """what a Service, a workload or a monitor selects is there"""
    for one in stack.of("Service"):
        if not any(selects({"matchLabels": one["spec"].get("selector", {})}, pod.labels) for pod in stack.pods):
            yield f"{name_of(one)} selects no pods"
    for one in stack.of("Deployment", "StatefulSet"):
        mine = labels_of(one["spec"]["template"])
        if not one["spec"].get("selector") or not selects(one["spec"]["selector"], mine):
            yield f"{name_of(one)} does not select its own pods"
        spread = one["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        if not all(selects(each.get("labelSelector"), mine) for each in spread):
            yield f"{name_of(one)} is spread by other pods than its own"
        if one["kind"] == "StatefulSet" and one["spec"].get("serviceName") not in stack.named("Service"):
            yield f"{name_of(one)}: there is no Service {one['spec'].get('serviceName')}"
    owners = Counter(name for name, _ in _selected_by_workloads(stack))
    yield from (f"{name} is selected by {number} workloads" for name, number in owners.items() if number > 1)
    services = stack.of("Service")
    for one in stack.of("ServiceMonitor"):
        if not any(selects(one["spec"]["selector"], each["metadata"].get("labels", {})) for each in services):
            yield f"{name_of(one)} selects no Service"


def _selected_by_workloads(stack: Rendered) -> Iterator[tuple[str, str]]:
    for one in stack.of("Deployment", "StatefulSet"):
        yield from ((pod.owner, name_of(one)) for pod in stack.pods if selects(one["spec"].get("selector"), pod.labels))


def _policies(stack: Rendered, kind: str) -> list[Facts]:
    return [one for one in stack.of("NetworkPolicy") if kind in one["spec"].get("policyTypes", [])]


@rule
def network(stack: Rendered) -> Iterator[str]:
    """what comes to a pod and what leaves it is closed but for what a policy opens, and each policy is of some pods"""
    for kind in ("Ingress", "Egress"):
        for pod in stack.pods:
            if not any(selects(one["spec"].get("podSelector"), pod.labels) for one in _policies(stack, kind)):
                yield f"{pod.owner}: no NetworkPolicy is for its {kind.lower()}"
    for one in stack.of("NetworkPolicy"):
        if not any(selects(one["spec"].get("podSelector"), pod.labels) for pod in stack.pods):
            yield f"{name_of(one)} selects no pods"


@rule
def servers_closed(stack: Rendered) -> Iterator[str]:
    """a server is open to named pods and namespaces alone, at named ports, and its clients reach it"""
    servers = [pod for pod in stack.pods if pod.role in SERVERS]
    for one in _policies(stack, "Ingress"):
        if any(selects(one["spec"].get("podSelector"), pod.labels) for pod in servers):
            for opened in one["spec"].get("ingress", []):
                if not opened.get("from") or not opened.get("ports") or not all(map(_named, opened["from"])):
                    yield f"{name_of(one)} opens a server to everybody"
    clients = [pod for pod in stack.pods if pod.role in CLIENTS]
    for pod in servers:
        for client in clients:
            if not any(_lets(one, pod, client) for one in _policies(stack, "Ingress")):
                yield f"{pod.owner} is closed to {client.owner}"
    for client in clients:
        egress = [one for one in _policies(stack, "Egress") if selects(one["spec"].get("podSelector"), client.labels)]
        peers = [peer for one in egress for opened in one["spec"].get("egress", []) for peer in opened.get("to", [])]
        for pod in servers:
            if not any(selects(peer["podSelector"], pod.labels) for peer in peers if "podSelector" in peer):
                yield f"{client.owner} may not reach {pod.owner}"


def _named(peer: Facts) -> bool:
    return any(bool(peer.get(name)) for name in ("podSelector", "namespaceSelector", "ipBlock"))


def _lets(policy: Facts, pod: Pod, client: Pod) -> bool:
    peers = [peer for opened in policy["spec"].get("ingress", []) for peer in opened.get("from", [])]
    into = selects(policy["spec"].get("podSelector"), pod.labels)
    return into and any(selects(peer["podSelector"], client.labels) for peer in peers if "podSelector" in peer)


def _secret_names(one: Facts) -> Iterator[tuple[str, list[str]]]:
    """The Secrets that a part of an object names, with the keys that it needs; optional ones are left out."""
    for field in ("secretName", "caSecretName"):
        if isinstance(one.get(field), str) and not one.get("optional"):
            yield one[field], [each["key"] for each in one.get("items", [])]
    for field in ("secret", "secretRef", "secretKeyRef", "importCredentialsSecret", "username", "password"):
        given = one.get(field)
        if isinstance(given, dict) and given.get("name") and not given.get("optional"):
            yield given["name"], [each["key"] for each in (given, *given.get("items", [])) if "key" in each]


@rule
def references(stack: Rendered) -> Iterator[str]:
    """the Secrets, ConfigMaps, claims and accounts that are named are there, with the keys that are asked for"""
    maps = stack.named("ConfigMap")
    secrets = {name: tuple(one.get("stringData") or one.get("data") or ()) for name, one in stack.named("Secret").items()}
    for one in stack.objects:
        for part in dicts(one):
            for name, keys in _secret_names(part):
                has = (SECRETS | secrets).get(name, ())
                if name not in SECRETS | secrets:
                    yield f"{name_of(one)}: there is no Secret {name}"
                elif wrong := [key for key in keys if has is not None and key not in has]:
                    yield f"{name_of(one)}: the Secret {name} has no {', '.join(wrong)}"
            for field in ("configMap", "configMapRef", "configMapKeyRef"):
                given = part.get(field)
                if isinstance(given, dict) and "name" in given and not given.get("optional"):
                    if given["name"] == "kube-root-ca.crt":  # Kubernetes puts it into each namespace
                        continue
                    if given["name"] not in maps:
                        yield f"{name_of(one)}: there is no ConfigMap {given['name']}"
                    elif (key := given.get("key")) and key not in maps[given["name"]].get("data", {}):
                        yield f"{name_of(one)}: the ConfigMap {given['name']} has no {key}"
    for pod in stack.ours:
        if (account := pod.spec.get("serviceAccountName")) not in stack.named("ServiceAccount"):
            yield f"{pod.owner}: there is no ServiceAccount {account}"
        claims = [
            one["persistentVolumeClaim"]["claimName"] for one in pod.spec.get("volumes", []) if "persistentVolumeClaim" in one
        ]
        yield from (
            f"{pod.owner}: there is no PersistentVolumeClaim {one}"
            for one in claims
            if one not in stack.named("PersistentVolumeClaim")
        )


@rule
def own_account(stack: Rendered) -> Iterator[str]:
    """a client of the servers has the passwords of its own role alone"""
    accounts = {f"{server}-{role}": role for server in SERVERS for role in ROLES}
    for pod in stack.ours:
        if pod.role not in SERVERS:
            named = [name for part in dicts(pod.spec) for name, _ in _secret_names({**part, "optional": False})]
            if wrong := sorted({name for name in named if accounts.get(name, pod.role) != pod.role}):
                yield f"{pod.owner} is a {pod.role or 'stranger'}, and gets {', '.join(wrong)}"


@rule
def queues(stack: Rendered) -> Iterator[str]:
    """a queue is consumed by one group of workers, or by groups of the same queues, as versions side by side"""
    workers = [pod for pod in stack.ours if pod.role == "worker"]
    named = {pod.owner: stack.variable(pod.containers[0], "CELERY_WORKER_QUEUES") for pod in workers}
    if not workers:
        yield "there are no workers"
    yield from (f"{name} names no queues, beside other groups" for name, given in named.items() if not given and len(named) > 1)
    numbers = Counter(queue for given in {*named.values()} for queue in filter(None, given.split(",")))
    yield from (f"{queue} is consumed by {number} groups" for queue, number in numbers.items() if number > 1)


@rule
def autoscaler(stack: Rendered) -> Iterator[str]:
    """an autoscaler has a workload without a number of its own, bounds in order, and something to ask"""
    for one in stack.of("ScaledObject"):
        spec = one["spec"]
        target = stack.named("Deployment").get(spec["scaleTargetRef"]["name"])
        least, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
        if target is None:
            yield f"{name_of(one)}: there is no Deployment {spec['scaleTargetRef']['name']}"
        elif "replicas" in target["spec"]:
            yield f"{name_of(one)}: {name_of(target)} has replicas, which each apply would set again"
        if not 1 <= least <= most:
            yield f"{name_of(one)}: from {least} to {most} workers"
        if not spec.get("triggers"):
            yield f"{name_of(one)} asks nothing"


@rule
def one_beat(stack: Rendered) -> Iterator[str]:
    """there is one beat, and the former one is gone before the next starts"""
    found = [one for one in stack.of("Deployment") if labels_of(one["spec"]["template"]).get(ROLE) == "beat"]
    if len(found) != 1:
        yield f"{len(found)} workloads are beat"
    for one in found:
        if one["spec"].get("replicas") != 1 or one["spec"].get("strategy", {}).get("type") != "Recreate":
            yield f"{name_of(one)}: replicas: 1 and strategy: Recreate"


@rule
def tls(stack: Rendered) -> Iterator[str]:
    """with SECURE, each process has its certificates"""
    if any(one.get("data", {}).get("SECURE") for one in stack.of("ConfigMap")):
        for pod in stack.ours:
            mounts = [one["mountPath"] for container in pod.containers for one in container.get("volumeMounts", [])]
            if pod.role in (*CLIENTS, *SERVERS) and "/tls" not in mounts:
                yield f"{pod.owner}: nothing is mounted at /tls"


def findings(objects: Sequence[Facts]) -> Iterator[tuple[str, str]]:
    """What is wrong with the objects: the name of a rule, and what it found."""
    rendered = Rendered(objects)
    for name, check in RULES.items():
        yield from ((name, found) for found in check(rendered))
