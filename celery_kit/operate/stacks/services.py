"""The services of worker groups, as a Compose file that is used after the broker's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from celery_kit.base.target import ROOT
from celery_kit.operate.groups import Group
from celery_kit.operate.stacks.docker import Facts

#: The label with a worker's group, as JSON.
GROUP = "celery-kit.group"


def written(project: str, file: str, groups: Sequence[Group], images: Mapping[str, str]) -> Path:
    """Write the file of a stack. `file`: the broker's, in the project's folder. Returns its path."""
    place = ROOT / ".kit/groups" / f"{project}.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump({"services": services(str(ROOT / file), groups, images)}, sort_keys=False))
    return place


def services(file: str, groups: Sequence[Group], images: Mapping[str, str]) -> Facts:
    """A service for each group, and images that replace the stack's own. beat is of the first group's version."""
    named = [one for one in groups if one.name]
    found: Facts = {"worker": {"scale": 0}} if named else {}
    found |= {one.service: service(one, file) for one in named}
    if groups[0].version:
        image = found[groups[0].service]["image"]
        found |= {"worker": {"scale": 0, "image": image}, "beat": {"image": image}}
    if groups[0].queue_version:
        found.setdefault("beat", {})["environment"] = {"QUEUE_VERSION": groups[0].queue_version}
    for name, pinned in images.items():
        found.setdefault(name, {})["image"] = pinned
    return found


def service(group: Group, file: str) -> Facts:
    """A group's service: the one for all workers in `file`, with what the group says."""
    common = yaml.safe_load((ROOT / "deploy/compose/app.yaml").read_text())["services"]["worker"]
    own = {"mem_limit": group.memory, "cpus": group.cpus}
    if group.time_limit is not None:
        own["stop_grace_period"] = f"${{STOP_GRACE_PERIOD:-{group.time_limit}s30s}}"
    image = common["image"].replace("${POOL:-prefork}", group.pool)
    if group.version:
        image = image.replace("${APP_VERSION:+-${APP_VERSION:-}}", f"-{group.version}")
    return {
        "extends": {"file": file, "service": "worker"},
        "image": image,
        "build": {"args": {"POOL": group.pool}},
        "scale": group.scale[0],
        "labels": {GROUP: group.noted()},
        "environment": {**group.environ(), "CELERY_WORKER_HOSTNAME": f"{group.name}@%h"},
        **{name: value for name, value in own.items() if value is not None},
    }
