"""More and fewer workers of a group while its stack runs, for `make balance`.

Compose starts them, from the settings that `make up` has noted: those that are typed or stand in .env may have changed since.
Compose cannot stop a chosen container of a service. So the engine stops it, and removes it: Compose then counts one less, and
the next `make up` has the number that the table says.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Protocol

from celery_kit.base.target import ROOT
from celery_kit.operate.groups import Group, role_of
from celery_kit.operate.stacks.docker import Facts, ask, last_line, run
from celery_kit.operate.stacks.ports import service_of


class NotScaledError(Exception):
    """A worker could not be started or stopped: the reason, in one line."""


class Scaling(Protocol):
    """What a stack has to offer so that its groups can be balanced. All of it raises NotScaledError."""

    def count(self, group: Group) -> int:
        """How many workers a group has, with those that are just starting."""

    def more(self, group: Group, number: int) -> None:
        """Start so many more workers of a group. Does not wait until they consume."""

    def end(self, worker: str) -> None:
        """Stop a worker by its node name, within its grace period, and have its group count one less."""


def note(project: str, file: str, config: Facts) -> None:
    """Note a stack's settings as it was started with them. `file`: its broker's; `config`: those that Compose shows.

    Only this user can read them: they have the values of .env and of ENV_FILE.
    """
    settings = deepcopy(config)
    for one in settings["services"].values():
        if (one.get("labels") or {}).get("celery-kit.env_file") == "":
            # Compose 2.26 leaves it out, and counts a container without it as one of other settings.
            one.setdefault("env_file", ["/dev/null"])
    _write(_noted(project) / file, settings)


def forget(project: str) -> None:
    """Forget a stack's settings before it is started again: until they are noted, no worker is started or stopped."""
    for file in _noted(project).glob("*"):
        file.unlink()


def _noted(project: str) -> Path:
    return ROOT / ".kit/stacks" / project


def _write(file: Path, settings: Facts) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    forget(file.parent.name)
    file.touch(mode=0o600)
    file.write_text(json.dumps(settings))


class Containers:
    """The groups of a stack of containers. `inspected`: returns the engine's description of each of its containers."""

    def __init__(self, project: str, inspected: Callable[[], list[Facts]]) -> None:
        self.project, self.inspected = project, inspected

    def count(self, group: Group) -> int:
        """How many of its containers run, or are about to. Not while `make up` makes that number."""
        self._settings()
        return sum(not _has_exited(one) for one in self._of(group))

    def more(self, group: Group, number: int) -> None:
        """Start so many more, of the image and with the settings of those that run."""
        mine = self._of(group)
        running = [one for one in mine if not _has_exited(one)]
        file = self._file(group, running)
        for one in filter(_has_exited, mine):
            ask("docker", "rm", one["Id"])  # Compose would count it, and start it or remove another one in its place
        words = ("--detach", "--no-recreate", "--no-deps", "--no-build", "--pull", "never")
        scale = ("--scale", f"{group.service}={len(running) + number}", group.service)
        _do("docker", "compose", "-p", self.project, "--project-directory", str(ROOT), "-f", str(file), "up", *words, *scale)

    def end(self, worker: str) -> None:
        """Stop its container, and remove it."""
        host = worker.rpartition("@")[2]
        found = [
            one["Id"] for one in self.inspected() if one["Config"]["Hostname"] == host and role_of(service_of(one)) == "worker"
        ]
        if not found:
            raise NotScaledError(f"{worker} has no container")
        _do("docker", "stop", *found)
        _do("docker", "rm", *found)

    def _of(self, group: Group) -> list[Facts]:
        return [one for one in self.inspected() if service_of(one) == group.service]

    def _file(self, group: Group, running: list[Facts]) -> Path:
        """The file with the noted settings. If the image of those that run has another name now, it names this image itself."""
        file, settings = self._settings()
        service = settings["services"][group.service]
        image = running[0]["Image"] if running else ""
        if image and ask("docker", "image", "inspect", "--format", "{{.Id}}", service["image"]).stdout.strip() != image:
            service["image"] = image
            _write(file, settings)
        return file

    def _settings(self) -> tuple[Path, Facts]:
        try:
            file = next(_noted(self.project).glob("*.yaml"))
            return file, json.loads(file.read_text())
        except (StopIteration, OSError, ValueError):
            raise NotScaledError("no worker is started or stopped before 'make up' has ended well") from None


def _has_exited(one: Facts) -> bool:
    return one["State"]["Status"] in ("exited", "dead")


def _do(*argv: str) -> None:
    """Run a command of the engine to its end. Raises NotScaledError if it fails."""
    done = run(*argv, input="", capture_output=True)
    if done.returncode:
        raise NotScaledError(f"'{' '.join(argv[:2])}' failed: {last_line(done.stderr or done.stdout)}")
