"""`make k8s-check`: what a folder renders, against the schemas of Kubernetes and of operators, and against the rules.

No cluster is asked. The schemas of Kubernetes are those of the package kubernetes-validate, those of custom resources are in
`deploy/kubernetes/crds.yaml`. In both, a field that is not known is an error.
"""

import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.operate.kubernetes.objects import name_of
from celery_kit.operate.kubernetes.render import HOME
from celery_kit.operate.kubernetes.rules import findings
from celery_kit.operate.stacks.docker import Facts, last_line, run

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

#: The release of Kubernetes whose schemas are taken.
VERSION = "1.32"
#: Programs that render a folder: kustomize is in kubectl, too. `deploy/kubectl.sh` gets the second one.
RENDERERS = (("kubectl", "kustomize"), (str(ROOT / ".kit/bin/kubectl"), "kustomize"), ("kustomize", "build"))
#: What takes away in a patch.
DELETES = re.compile(r"\$patch: *['\"]?delete|op['\"]?: *['\"]?remove")


def rendered(folder: Path) -> list[Facts]:
    """The objects of a folder. Refuses a folder that cannot be rendered, in one line."""
    if not (folder / "kustomization.yaml").is_file():
        refuse(f"OUT={folder} has no kustomization.yaml; 'make k8s' writes one")
    found = next((one for one in RENDERERS if shutil.which(one[0])), None)
    if not found:
        refuse("kubectl is not there: install it, or run deploy/kubectl.sh on Debian or Ubuntu")
    done = run(*found, str(folder), capture_output=True)
    if done.returncode:
        refuse(f"OUT={folder} cannot be rendered: {last_line(done.stderr)}")
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def check(folder: Path) -> Iterator[tuple[str, str]]:
    """What is wrong with a folder: the name of a rule, and what it found."""
    for file in sorted(folder.rglob("*.yaml")):
        if DELETES.search(file.read_text()):
            yield "nothing-deleted", f"{file.relative_to(folder)} deletes by a patch; leave the component out of the list"
    objects = rendered(folder)
    wrong = [("schema", found) for one in objects for found in mistakes(one)]
    yield from wrong or findings(objects)  # the rules take the shape of objects for granted


def mistakes(one: Facts) -> Iterator[str]:
    """What the schema of an object's kind says of it."""
    validator = _validator(str(one.get("apiVersion")), str(one.get("kind")))
    if validator is None:
        yield f"{one.get('apiVersion')} {one.get('kind')} is not known"
        return
    for error in validator.iter_errors(one):
        where = ".".join(map(str, error.absolute_path))
        yield f"{name_of(one)}: {where or 'it'}: {error.message[:300]}"


@cache
def _validator(api: str, kind: str) -> "Validator | None":
    from jsonschema.validators import Draft202012Validator
    from referencing import Registry, Resource

    group = re.sub("^([^./]*)([.][^/]*)?/", r"\1-", api)
    schema = _own().get((api, kind)) or _of_kubernetes(f"{kind.lower()}-{group}.json")
    if schema is None:
        return None
    definitions = Resource.from_contents(_of_kubernetes("_definitions.json"))
    return Draft202012Validator(schema, registry=definitions @ Registry())


@cache
def _folder() -> Traversable:
    return files("kubernetes_validate") / f"kubernetes-json-schema/v{VERSION}.0-local-strict"


@cache
def _of_kubernetes(file: str) -> Facts | None:
    found = _folder() / file
    return json.loads(found.read_text()) if re.fullmatch(r"[\w.-]+", file) and found.is_file() else None


@cache
def _own() -> dict[tuple[str, str], Facts]:
    """The schemas of custom resources, by version and kind. A field that is not in them is an error."""
    found = {}
    for one in yaml.safe_load_all((HOME / "crds.yaml").read_text()):
        whole = {"apiVersion": {}, "kind": {}, "metadata": {"$ref": _METADATA}, "spec": one["spec"]}
        schema = {"$id": "https://kubernetes.io/api/custom", "required": ["metadata", "spec"], "properties": whole}
        found[one["apiVersion"], one["kind"]] = _strict(schema)
    return found


_METADATA = "/api/_definitions.json#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def _strict(schema: Facts) -> Facts:
    closed = {"additionalProperties": False, **schema} if "properties" in schema else dict(schema)
    if "properties" in closed:
        closed["properties"] = {name: _strict(one) for name, one in closed["properties"].items()}
    if "items" in closed:
        closed["items"] = _strict(closed["items"])
    return closed
