"""The Docker engine, called by its client with a time limit. The client may be missing, and the engine may hang.

All checkouts of the machine share the engine: each container and volume has a label with its checkout.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, TypedDict, Unpack

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS

#: A JSON object from the engine, from Compose or from a pid file, with the keys of its source.
Facts: TypeAlias = dict[str, Any]
#: How long to wait for an answer from an idle engine, in seconds.
ENGINE_SECONDS = 20.0
#: A volume's label with the path of its checkout. Containers have Compose's own label for that.
OWNER = "celery-kit.checkout"
#: The engine's units, in bytes.
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class RunOptions(TypedDict, total=False):
    """Options of subprocess.run. `timeout`: seconds."""

    input: str
    stdout: int | IO[bytes]
    stderr: int | IO[bytes]
    capture_output: bool
    timeout: float


class EngineSilentError(Exception):
    """The engine does not answer in time."""


def run(*argv: str, env: Mapping[str, str] | None = None, **options: Unpack[RunOptions]) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder, and wait until it exits. For a missing program, the exit code is 127."""
    try:
        return subprocess.run(argv, cwd=ROOT, env=env, text=True, check=False, **options)
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, "", f"{argv[0]}: {error.strerror}")


def ask(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that the engine or its client should answer at once, and capture its output.

    After ENGINE_SECONDS, kills the client and its plugins, and raises EngineSilentError.
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


def content(container: str | None, path: str) -> str:
    """The text of a file in a container. `path` may name variables of its environment. Empty without a container or a file."""
    return ask("docker", "exec", container, "sh", "-c", f'cat "{path}"').stdout.strip() if container else ""


def last_line(text: str) -> str:
    """The last line of a program's output, which usually has the reason for its failure."""
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


def answered(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON that a program printed. Refuses other output, with the reason that the program printed."""
    try:
        return json.loads(done.stdout)
    except ValueError:
        refuse(f"'{' '.join(done.args[:3])}' did not answer with JSON: {last_line(done.stderr or done.stdout)}")


@dataclass(frozen=True)
class Container:
    """A container of a stack of the kit. `folder`: its checkout's; `file`: the name of its broker's Compose file."""

    id: str
    state: str
    project: str
    folder: Path
    file: str

    @property
    def runs(self) -> bool:
        """Whether it is running. Paused and restarting containers count."""
        return self.state in ("running", "paused", "restarting")

    @property
    def owner(self) -> str:
        """A description of its stack and checkout."""
        if self.folder.is_dir():
            return f"the stack {self.project} of the checkout in {self.folder}"
        return f"the stack {self.project} of {self.folder}, now missing ('docker compose -p {self.project} down' stops it)"


@dataclass(frozen=True)
class Volume:
    """A volume of a stack. `key`: its name in the Compose file; `owner`: its checkout's path, empty if unknown."""

    name: str
    key: str
    owner: str


def _rows(*argv: str, columns: tuple[str, ...]) -> list[list[str]]:
    """The rows that the client lists, by the columns of Go's templates. Other lines are ignored."""
    done = ask(*argv, "--format", "\t".join(f"{{{{{column}}}}}" for column in columns))
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == len(columns)]


def containers(*filters: str) -> list[Container]:
    """The containers of all stacks of the kit, in any checkout, exited ones too. Compose itself takes longer to list them."""
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
    """The volumes of a stack, by its name."""
    columns = (".Name", '.Label "com.docker.compose.volume"', f'.Label "{OWNER}"')
    rows = _rows("docker", "volume", "ls", "--filter", f"label=com.docker.compose.project={project}", columns=columns)
    return [Volume(*row) for row in rows]


def make_volumes(project: str, config: Facts) -> None:
    """Create the volumes that a stack mounts and does not have yet, as Compose would, with a label for their checkout."""
    for key in {
        mount["source"] for one in config["services"].values() for mount in one.get("volumes", []) if mount["type"] == "volume"
    }:
        labels = {"com.docker.compose.project": project, "com.docker.compose.volume": key, OWNER: str(ROOT)}
        words = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
        ask("docker", "volume", "create", *words, config["volumes"][key]["name"])


def memory_used(container: str) -> int:
    """A container's memory in bytes, without the cache of files; 0: unknown.

    Asks the engine, because a command in the container might need more memory than there is.
    """
    usage = ask("docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", container).stdout
    used = re.match(r"(\d+(?:\.\d+)?)(\w+)", usage)
    return int(float(used[1]) * UNITS.get(used[2], 1)) if used else 0


def port_holder(number: int) -> str:
    """A description of the stack of the kit that publishes a port of this machine; empty if none does."""
    return next((one.owner for one in containers(f"publish={number}")), "")


def others() -> str:
    """A description of the running stacks of other checkouts; empty if there are none."""
    found = sorted({one.owner for one in containers() if one.runs and one.folder != ROOT})
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
