"""A move that is killed at a point and run again, by real processes."""

import os
import subprocess
import sys

from celery_kit.base.target import ROOT
from tests.migrate.ends import Place


def tool(source: Place, target: Place, *before: str) -> subprocess.CompletedProcess[str]:
    """Run the tool, or, with `before`, the one that kills itself at a point."""
    module = "tests.migrate.killed" if before else "celery_kit.operate.look.migrate"
    argv = [sys.executable, "-m", module, *before, "--from", source.url, "--to", target.url]
    ports = source.environ | target.environ
    return subprocess.run(argv, cwd=ROOT, env={**os.environ, **ports}, capture_output=True, text=True, timeout=180, check=False)
