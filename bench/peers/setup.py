"""The peers' environment: `.kit/peers`, made from its own lock, for their packages need others than the kit's."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".kit/peers"
LOCK = Path(__file__).with_name("requirements.txt")


def prepare() -> None:
    """Make it, unless it holds that lock already."""
    held = PEERS / LOCK.name
    if held.exists() and held.read_bytes() == LOCK.read_bytes():
        return
    print("setting up .kit/peers (once)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEERS)], check=True)
    pip = [str(PEERS / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "--requirement", str(LOCK)], check=True, stderr=subprocess.DEVNULL)
    held.write_bytes(LOCK.read_bytes())
