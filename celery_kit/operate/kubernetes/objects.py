"""The objects that a folder renders, and what they say of pods.

An object of an operator is taken for the pods that it will make by the labels of the pod template in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from celery_kit.operate.stacks.docker import Facts

ROLE = "celery-kit.role"
#: Kinds whose pods are as their template says.
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")


@dataclass(frozen=True)
class Pod:
    """The pods of an object. `spec`: empty if an operator makes them."""

    owner: str
    role: str
    labels: Facts
    spec: Facts

    @property
    def containers(self) -> list[Facts]:
        """All of its containers."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


class Rendered:
    """The objects of a folder."""

    def __init__(self, objects: Sequence[Facts]) -> None:
        self.objects = objects

    def of(self, *kinds: str) -> list[Facts]:
        """The objects of some kinds."""
        return [one for one in self.objects if one["kind"] in kinds]

    def named(self, kind: str) -> dict[str, Facts]:
        """The objects of a kind by name."""
        return {one["metadata"]["name"]: one for one in self.of(kind)}

    @cached_property
    def pods(self) -> list[Pod]:
        """The pods that the objects describe."""
        found = [(one, template) for one in self.objects for template in templates(one)]
        return [
            Pod(
                name_of(one),
                labels_of(template).get(ROLE, ""),
                labels_of(template),
                template.get("spec", {}) if one["kind"] in WORKLOADS else {},
            )
            for one, template in found
        ]

    @property
    def ours(self) -> list[Pod]:
        """Those that no operator makes."""
        return [one for one in self.pods if one.spec]

    def variable(self, container: Facts, name: str) -> str:
        """The value of a variable of a container, its own or of a ConfigMap; empty without one."""
        own = {one["name"]: one.get("value", "") for one in container.get("env", [])}
        maps = [one["configMapRef"]["name"] for one in container.get("envFrom", []) if "configMapRef" in one]
        data = [self.named("ConfigMap").get(one, {}).get("data", {}).get(name, "") for one in maps]
        return own.get(name) or next(filter(None, data), "")


def name_of(one: Facts) -> str:
    """An object's kind and name."""
    return f"{one['kind']}/{one['metadata']['name']}"


def labels_of(template: Facts) -> Facts:
    """The labels of an object, or of the pods of a template."""
    return dict(template.get("metadata", {}).get("labels", {}))


def templates(value: object) -> Iterator[Facts]:
    """The pod templates within an object."""
    for one in dicts(value):
        template = one.get("template")
        if isinstance(template, dict) and (labels_of(template) or "containers" in template.get("spec", {})):
            yield template


def dicts(value: object) -> Iterator[Facts]:
    """All objects within a value of JSON, and it itself."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from dicts(one)


def selects(selector: Facts | None, labels: Facts) -> bool:
    """Whether a label selector, of matchLabels and matchExpressions, selects something with these labels."""
    selector = selector or {}
    exact = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    return exact and all(_holds(one, labels) for one in selector.get("matchExpressions", []))


def _holds(expression: Facts, labels: Facts) -> bool:
    key, values = expression["key"], expression.get("values", [])
    answers = {"In": labels.get(key) in values, "NotIn": labels.get(key) not in values}
    return {**answers, "Exists": key in labels, "DoesNotExist": key not in labels}[expression["operator"]]
