"""What a health probe costs: `python -m docs.probe`, on Linux. Prints a line for the docs."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from app import health
from app.stack import ROOT

RUNS = 200


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "heartbeat")
        health.write(file, health.now() + 3_600)
        took = []
        for _ in range(RUNS):
            start = time.perf_counter()
            done = subprocess.run(["/bin/sh", str(ROOT / "deploy/healthy.sh")], env={"HEARTBEAT_FILE": str(file)}, check=False)
            took.append(1_000 * (time.perf_counter() - start))
            if done.returncode:
                sys.exit("the probe did not find a healthy worker healthy")
        # The same script in a shell that then says how much memory it took at most; a parent's view counts the parent's own.
        words = f'. {ROOT / "deploy/healthy.sh"}; while read -r name size _; do [ "$name" = VmHWM: ] && echo "$size"; done'
        said = subprocess.run(
            ["/bin/sh", "-c", f"{words} < /proc/$$/status; true"],
            env={"HEARTBEAT_FILE": str(file)}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        most = int(said) / 1024
    print(
        f"{RUNS} probes: median {median(took):.1f} ms, slowest {max(took):.1f} ms, {most:.1f} MB "
        f"({datetime.now(UTC):%Y-%m-%d}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"/bin/sh is {Path('/bin/sh').resolve().name})"
    )


if __name__ == "__main__":
    main()
