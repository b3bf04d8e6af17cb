"""The Docker engine, asked through its own client: with a time limit, and whatever it answers, or that there is no client.

The engine is shared by every checkout on the machine: what it lists says whose it is.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS

#: How long the engine is waited for where it has nothing to do but answer.
ENGINE_SECONDS = 20.0
#: A volume's label: the path of the checkout that it belongs to. Of a container Compose's own label says it.
OWNER = "celery-kit.checkout"


class EngineSilentError(Exception):
    """The engine was asked and does not answer."""


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command at the project's root, to its end. A program that is not there gives 127, as a shell has it."""
    try:
        return subprocess.run(argv, cwd=ROOT, text=True, check=False, **options)
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")


def ask(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run what the engine or its client answers at once, and keep the output.

    Raises EngineSilentError after ENGINE_SECONDS, and kills what the client started, its plugins too.
    """
    try:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=env, text=True, errors="replace", process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")
    try:
        out, err = process.communicate(timeout=ENGINE_SECONDS)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EngineSilentError(f"the Docker engine does not answer within {ENGINE_SECONDS:g} s") from None
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def last_line(text: str) -> str:
    """Of what a program printed: its reason, as a rule."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def told(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a program answered. Refuses anything else, with the program's own reason."""
    try:
        return json.loads(done.stdout)
    except ValueError:
        refuse(f"'{' '.join(done.args[:3])}' gave no answer that can be used: {last_line(done.stderr or done.stdout)}")


@dataclass(frozen=True)
class Container:
    """One of a stack of the kit, as the engine lists it. `folder`: the checkout's; `file`: its broker's Compose file."""

    id: str
    state: str
    project: str
    folder: Path
    file: str

    @property
    def runs(self) -> bool:
        """Frozen and restarting ones too."""
        return self.state in ("running", "paused", "restarting")

    @property
    def owner(self) -> str:
        """Whose stack it is of, in words."""
        if self.folder.is_dir():
            return f"the stack {self.project} of the checkout in {self.folder}"
        return f"the stack {self.project} of {self.folder}, which is gone ('docker compose -p {self.project} down' stops it)"


@dataclass(frozen=True)
class Volume:
    """One of a stack. `key`: what the Compose file calls it; `owner`: its checkout's path, empty where none is noted."""

    name: str
    key: str
    owner: str


def _rows(*argv: str, columns: tuple[str, ...]) -> list[list[str]]:
    """What the client lists, by the columns of Go's templates; a line that is not of the list is left out."""
    done = ask(*argv, "--format", "\t".join(f"{{{{{column}}}}}" for column in columns))
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == len(columns)]


def containers(*filters: str) -> list[Container]:
    """Those of every stack of the kit, whosever it is; ended ones too. Compose itself takes longer to say."""
    options = [word for one in ("label=com.docker.compose.oneoff=False", *filters) for word in ("--filter", one)]
    labels = (f'.Label "com.docker.compose.project{of}"' for of in ("", ".working_dir", ".config_files"))
    rows = _rows("docker", "ps", "--all", *options, columns=(".ID", ".State", *labels))
    files = {broker.compose_file for broker in BROKERS.values()}
    return [
        Container(number, state, project, Path(folder).resolve(), file)
        for number, state, project, folder, found in rows
        if (file := Path(found.partition(",")[0]).name) in files
    ]


def volumes(project: str) -> list[Volume]:
    """Those of a stack, by its name."""
    columns = (".Name", '.Label "com.docker.compose.volume"', f'.Label "{OWNER}"')
    rows = _rows("docker", "volume", "ls", "--filter", f"label=com.docker.compose.project={project}", columns=columns)
    return [Volume(*row) for row in rows]


def make_volumes(project: str, config: dict[str, Any]) -> None:
    """Make those that a stack mounts and does not have yet, as Compose would, with the owner's name on them."""
    for key in {
        mount["source"] for one in config["services"].values() for mount in one.get("volumes", []) if mount["type"] == "volume"
    }:
        labels = {"com.docker.compose.project": project, "com.docker.compose.volume": key, OWNER: str(ROOT)}
        words = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
        ask("docker", "volume", "create", *words, config["volumes"][key]["name"])


def port_holder(number: int) -> str:
    """The stack of the kit that publishes a port of this machine, in words; empty: none."""
    return next((one.owner for one in containers(f"publish={number}")), "")


def others() -> str:
    """The stacks of other checkouts that run, in words; empty: none."""
    found = sorted({one.owner for one in containers() if one.runs and one.folder != ROOT})
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
