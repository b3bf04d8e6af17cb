"""Environments of their own under `.kit/`, from locks: the workers' holds what their images do, and no developer's tools, which
Celery and redis-py import where they find them; the peers', and those that the tests set beside the kit, need others than the
kit's.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from celery_kit.base.refusals import refuse

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Environment:
    """`locks`: of its packages, with hashes."""

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
        """Make it, unless it holds those locks already. Refuses where that fails."""
        wanted, held = b"".join(lock.read_bytes() for lock in self.locks), self.folder / "held.txt"
        if held.exists() and held.read_bytes() == wanted:
            return
        print(f"setting up .kit/{self.name} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder)], check=True)
        # A lock is whole: what it holds beside a package's own bounds (tests/packages/overrides.txt) is meant.
        install = [self.command("pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
        chosen = [word for lock in self.locks for word in ("--requirement", str(lock))]
        if (done := subprocess.run([*install, *chosen], capture_output=True, text=True)).returncode:
            refuse(f".kit/{self.name} could not be made: {(done.stderr.strip() or 'pip says nothing').splitlines()[-1]}")
        held.write_bytes(wanted)


#: Each of these two holds all that every worker has, and its pool.
WORKERS = Environment("workers", (ROOT / "requirements/gevent.txt", ROOT / "requirements/eventlet.txt"))
PEERS = Environment("peers", (ROOT / "bench/peers/requirements.txt",))
#: Celery's own integration suite, and packages for Celery that people use.
UPSTREAM = Environment("upstream/venv", (ROOT / "tests/upstream/requirements.txt",))
PACKAGES = Environment("packages", (ROOT / "tests/packages/requirements.txt",))
