"""The volumes of a stack, as tar archives: of containers, by a container; of the embedded stack, its folders."""

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Protocol

from celery_kit.base.choices import data_dir
from celery_kit.base.refusals import Absent, refuse
from celery_kit.brokers.contract import Copy
from celery_kit.brokers.embedded import HOME
from celery_kit.operate.groups import Group, role_of, shown
from celery_kit.operate.stacks.compose import Compose
from celery_kit.operate.stacks.docker import Facts, ask, last_line, make_volumes, run, volumes
from celery_kit.operate.stacks.embedded import lock
from celery_kit.operate.stacks.images import prepare
from celery_kit.operate.stacks.local import Local
from celery_kit.operate.stacks.ports import service_of

try:
    import fcntl
except ImportError:
    fcntl = Absent("the embedded stack")  # type: ignore[assignment]

#: What tasks and beat keep: the timetable, the spool. A worker's sign of life is nothing to restore.
DATA = Copy("data", without=("*.heartbeat", "heartbeat"))
#: The services whose images read and write volumes: their own, and the broker's those of others.
SERVERS = ("results", "broker")
#: Seconds until a server that is started again is healthy.
HEALTHY = 180.0
#: tar's exit code for a file that changed while it was read; what must not change is left out, or nothing writes it.
CHANGED = 1


class Place(Protocol):
    """Where the volumes of a stack are."""

    def read(self, copy: Copy, out: tarfile.TarFile) -> None:
        """Add the files of a volume to a tar archive."""

    def write(self, volume: str, tar: IO[bytes]) -> None:
        """Unpack a tar archive into a volume that :meth:`clear` has emptied."""

    def clear(self, names: Iterable[str]) -> None:
        """Empty these volumes. What tasks keep on this machine is its user's: files of other names stay."""

    def version(self, copy: Copy) -> str:
        """The version of a volume's server."""

    def filled(self, names: Iterable[str]) -> list[str]:
        """Those of these volumes that are there, as a person calls them."""

    def stopped(self, *roles: str) -> AbstractContextManager[None]:
        """Stop the processes of these roles, and start them again, healthy, at the end of the block."""

    def alone(self) -> AbstractContextManager[bool]:
        """Keep the stack from being started during the block. Yields whether it could."""


class Volumes:
    """The volumes of a stack of containers, read and written in containers of the images of their servers.

    `names` and `images`: by a volume's key in the Compose file, which `config` is, if the stack is to be made.
    """

    def __init__(self, stack: Compose, names: Mapping[str, str], images: Mapping[str, str], config: Facts) -> None:
        self.stack, self.names, self.images, self.config = stack, names, images, config

    @classmethod
    def of_running(cls, stack: Compose) -> "Volumes":
        """Those of a stack that runs."""
        keys = {one.name: one.key for one in volumes(stack.project)}
        servers = {service_of(one): one for one in stack.inspected()}
        if "broker" not in servers:
            refuse("the stack has no broker; 'make ps' shows what it has")
        image: str = servers["broker"]["Image"]
        images = dict.fromkeys(keys.values(), image)
        for one in (servers[name] for name in SERVERS if name in servers):
            images |= {keys[mount["Name"]]: one["Image"] for mount in one["Mounts"] if mount.get("Name") in keys}
        return cls(stack, {key: name for name, key in keys.items()}, images, {})

    @classmethod
    def to_be(cls, stack: Compose, backend: str) -> "Volumes":
        """Those that a stack would get."""
        prepare()
        config, _, _ = stack.config([Group()], backend, None, (), {})
        image: str = config["services"]["broker"]["image"]
        images = dict.fromkeys(config["volumes"], image)
        for one in (config["services"][name] for name in SERVERS if name in config["services"]):
            images |= {mount["source"]: one["image"] for mount in one["volumes"] if mount["type"] == "volume"}
        return cls(stack, {key: one["name"] for key, one in config["volumes"].items()}, images, config)

    def _tar(self, volume: str, mode: str, *words: str) -> list[str]:
        mount = f"{self.names[volume]}:/volume{mode}"
        own = ["docker", "run", "--rm", "--interactive", "--network", "none", "--user", "0:0", "--volume", mount]
        return [*own, "--entrypoint", "tar", self.images[volume], "-C", "/volume", "--numeric-owner", *words]

    def read(self, copy: Copy, out: tarfile.TarFile) -> None:
        """As in the protocol. The owners of files are kept, by number."""
        without = [f"--exclude=./{one}" for one in copy.without]
        words = self._tar(copy.volume, ":ro", "--anchored", "--wildcards", *without, "-cf", "-", ".")
        with tempfile.TemporaryFile() as said, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said) as process:
            whole = False
            with suppress(tarfile.ReadError), tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in tar:
                    member.name = member.name.removeprefix("./")
                    _add(out, copy, member, tar.extractfile(member) if member.isreg() else None)
                whole = True
            if process.wait() > CHANGED or not whole:
                said.seek(0)
                refuse(f"the volume {self.names[copy.volume]} cannot be read: {last_line(said.read().decode())}")

    def write(self, volume: str, tar: IO[bytes]) -> None:
        """As in the protocol. Refuses if the volume cannot be written."""
        words = self._tar(volume, "", "-xpf", "-")
        with tempfile.TemporaryFile() as said, subprocess.Popen(words, stdin=subprocess.PIPE, stderr=said) as process:
            assert process.stdin
            with suppress(BrokenPipeError):
                shutil.copyfileobj(tar, process.stdin)
                process.stdin.close()
            if process.wait():
                said.seek(0)
                refuse(f"the volume {self.names[volume]} is not whole: {last_line(said.read().decode())}; try again with YES=1")

    def clear(self, names: Iterable[str]) -> None:
        """As in the protocol. Refuses if the engine cannot delete one."""
        if (mine := self.filled(names)) and (done := ask("docker", "volume", "rm", *mine)).returncode:
            refuse(f"the former data cannot be deleted: {last_line(done.stderr)}")
        make_volumes(self.stack.project, self.config)

    def version(self, copy: Copy) -> str:
        """As in the protocol: asked of its image. Refuses if that does not tell."""
        command, *words = copy.version
        how = ("docker", "run", "--rm", "--network", "none", "--entrypoint", command)
        done = run(*how, self.images[copy.volume], *words, capture_output=True)  # a tool of its own may take long to start
        return _number(done.stdout) or refuse(f"{command} does not tell its version: {last_line(done.stderr or done.stdout)}")

    def filled(self, names: Iterable[str]) -> list[str]:
        """As in the protocol."""
        wanted = {*names}
        return [one.name for one in volumes(self.stack.project) if one.key in wanted]

    @contextmanager
    def stopped(self, *roles: str) -> Iterator[None]:
        """As in the protocol. Refuses if one does not start again."""
        running = [one for one in self.stack.inspected() if one["State"]["Running"] and role_of(service_of(one)) in roles]
        ids = [one["Id"] for one in running]
        try:
            _engine("stop", ids)
            yield
        finally:
            _engine("start", ids)
            deadline = time.monotonic() + HEALTHY
            while not all(_healthy(one) for one in self.stack.inspected() if one["Id"] in ids):
                if time.monotonic() > deadline:
                    refuse(f"the stack is not healthy {HEALTHY:g} s after its start; 'make ps' shows its state")
                time.sleep(0.5)

    def alone(self) -> AbstractContextManager[bool]:
        """As in the protocol: the engine deletes no volume that is in use."""
        return nullcontext(True)


def _healthy(one: Facts) -> bool:
    health: Facts = one["State"].get("Health", {})
    return health.get("Status") == "healthy"


def _engine(what: str, ids: list[str]) -> None:
    done = run("docker", what, *ids, capture_output=True) if ids else None
    if done and done.returncode:
        refuse(f"'docker {what}' failed: {last_line(done.stderr)}; 'make ps' shows the stack's state")


def _number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else ""


def _add(out: tarfile.TarFile, copy: Copy, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    """Add a file to the archive of a volume; where it is one that is moved, with what the copy has in addition."""
    new = copy.moved.get(member.name)
    member.name = new or member.name
    out.addfile(member, content)
    for name, text in (copy.added if new else {}).items():
        own = member.replace(name=name, deep=False)
        own.size = len(text)
        out.addfile(own, io.BytesIO(text.encode()))


class Folders:
    """The same of the embedded stack: folders of this machine."""

    def _of(self, volume: str) -> Path:
        return data_dir() if volume == DATA.volume else HOME / volume

    def read(self, copy: Copy, out: tarfile.TarFile) -> None:
        """As in the protocol."""
        folder = self._of(copy.volume)
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if any(fnmatch(name, pattern) for pattern in copy.without):
                continue
            with suppress(FileNotFoundError):  # it was deleted just now
                if member := out.gettarinfo(path, arcname=name):  # none for a socket
                    with path.open("rb") if member.isreg() else nullcontext() as content:
                        _add(out, copy, member, content)

    def write(self, volume: str, tar: IO[bytes]) -> None:
        """As in the protocol."""
        folder = self._of(volume)
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=tar, mode="r|") as archive:
            archive.extractall(folder, filter="data")

    def clear(self, names: Iterable[str]) -> None:
        """As in the protocol."""
        for name in names:
            if name != DATA.volume:
                shutil.rmtree(self._of(name), ignore_errors=True)

    def version(self, copy: Copy) -> str:
        """As in the protocol."""
        return _number(run(*copy.version, capture_output=True).stdout)

    def filled(self, names: Iterable[str]) -> list[str]:
        """As in the protocol."""
        return [shown(folder) for name in names if name != DATA.volume and (folder := self._of(name)).exists()]

    def stopped(self, *roles: str) -> AbstractContextManager[None]:
        """Refuses: nothing has to be stopped."""
        refuse("STOP=1 has no use here: the embedded stack is copied while it runs")

    def alone(self) -> AbstractContextManager[bool]:
        """As in the protocol."""
        return lock(fcntl.LOCK_EX)


def of_running(stack: Local | Compose) -> Place:
    """The volumes of a stack that runs."""
    return Volumes.of_running(stack) if isinstance(stack, Compose) else Folders()


def to_be(stack: Local | Compose, backend: str) -> Place:
    """Those that a stack would get."""
    return Volumes.to_be(stack, backend) if isinstance(stack, Compose) else Folders()
