"""What a worker gets in a container: the environment and the rights that its image and its compose files give it.

Benchmark and tests use the same.
"""

import re
from functools import cache
from typing import Any

import yaml

from testbed.environments import ROOT

#: What only a container has: its search path, its pool, its version, and addresses of its network.
ELSEWHERE = ("PATH", "POOL", "APP_VERSION", "SMTP_HOST", "SMS_GATEWAY_URL")
#: What bounds a container, in a compose file and in the Docker client alike.
RIGHTS = ("cap_drop", "security_opt", "read_only", "tmpfs", "pids_limit", "mem_limit")
#: A variable in a compose file, with its default.
DEFAULT = re.compile(r"\$\{\w+:-([^${}]*)\}")


def of_the_image() -> dict[str, str]:
    """What deploy/Dockerfile sets, in the stages of a worker of app/."""
    text = (ROOT / "deploy/Dockerfile").read_text()
    stages = {stage.split()[3]: stage for stage in re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]}
    chosen = "".join(stages[name] for name in ("base", "kit", "code-app", "worker"))
    return dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)", chosen, re.MULTILINE) for pair in line.split())


def of_the_stack() -> dict[str, str]:
    """What deploy/compose/app.yaml gives a worker where the user has chosen nothing."""
    given = yaml.safe_load((ROOT / "deploy/compose/app.yaml").read_text())["services"]["worker"]["environment"]
    return {name: _default(str(value)) for name, value in given.items()}


def rights() -> dict[str, Any]:
    """What its container may do and use, as options of the Docker client."""
    every, worker = (
        yaml.safe_load((ROOT / "deploy/compose" / file).read_text())["services"][service]
        for file, service in (("every.yaml", "container"), ("app.yaml", "worker"))
    )
    given = {name: (every | worker)[name] for name in RIGHTS}
    plain = {name: _default(value) if isinstance(value, str) else value for name, value in given.items()}
    folders = dict(_default(one).split(":", 1) for one in plain["tmpfs"])
    return plain | {"tmpfs": folders, "read_only": plain["read_only"] == "true", "pids_limit": int(plain["pids_limit"])}


def _default(value: str) -> str:
    while (again := DEFAULT.sub(r"\1", value)) != value:
        value = again
    return value


@cache
def environment() -> dict[str, str]:
    """All of it, on this machine: files are in .kit/deployed/."""
    folder = ROOT / ".kit/deployed"
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: value for name, value in (of_the_image() | of_the_stack()).items() if name not in ELSEWHERE}
    return found | {"DATA_DIR": str(folder), "HEARTBEAT_FILE": str(folder / "heartbeat")}
