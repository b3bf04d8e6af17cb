"""Python environments under `.kit/`, made from locks.

The workers' environment has the packages of their images, and no developer's tools, because Celery and redis-py import some of
these if they are installed. The peers, and packages that the tests use with the kit, need other versions than the kit.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from celery_kit.base.refusals import refuse

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Environment:
    """An environment. `locks`: files with the versions and hashes of its packages."""

    name: str
    locks: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        return ROOT / ".kit" / self.name

    def command(self, name: str) -> str:
        """The path of one of its commands, such as python."""
        return str(self.folder / "bin" / name)

    @property
    def is_there(self) -> bool:
        return Path(self.command("python")).exists()

    def prepare(self) -> None:
        """Create it, unless it was made from the same locks. Refuses if that fails."""
        wanted, held = b"".join(lock.read_bytes() for lock in self.locks), self.folder / "held.txt"
        if held.exists() and held.read_bytes() == wanted:
            return
        print(f"setting up .kit/{self.name} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder)], check=True)
        # A lock is complete. Versions outside of a package's own bounds (tests/packages/overrides.txt) are intended.
        install = [self.command("pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
        chosen = [word for lock in self.locks for word in ("--requirement", str(lock))]
        if (done := subprocess.run([*install, *chosen], capture_output=True, text=True)).returncode:
            refuse(f".kit/{self.name} could not be made: {(done.stderr.strip() or 'pip says nothing').splitlines()[-1]}")
        held.write_bytes(wanted)


#: Each of these two has the packages of every worker, and those of its pool.
WORKERS = Environment("workers", (ROOT / "requirements/gevent.txt", ROOT / "requirements/eventlet.txt"))
PEERS = Environment("peers", (ROOT / "bench/peers/requirements.txt",))
#: Peers that need a newer redis-py than arq allows.
NEWER_PEERS = Environment("newer-peers", (ROOT / "bench/peers/newer.txt",))
#: Celery's own integration suite, and packages for Celery that people use.
UPSTREAM = Environment("upstream/venv", (ROOT / "tests/upstream/requirements.txt",))
FUZZ = Environment("fuzz/venv", (ROOT / "requirements/worker.txt", ROOT / "tests/fuzz/requirements.txt"))
PACKAGES = Environment("packages", (ROOT / "tests/packages/requirements.txt",))
