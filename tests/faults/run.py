"""`make test-faults`: run the trials on celery-kit and on plain Celery, and write the report of both.

QUICK=1 runs each fault on one pool of each broker, without plain Celery and without a report, and retries failed trials once.
BROKER= and POOL= select trials.
"""

import os
import subprocess
import sys

#: Number of parallel setups. Each mostly waits. Half of the pairs: none waits for a third one.
AT_ONCE = "5"


def main() -> None:
    quick = bool(os.environ.get("QUICK"))
    tests = [sys.executable, "-m", "pytest", "tests/faults/test_faults.py", "-n", AT_ONCE, "-q", "--no-header"]
    code = subprocess.run([*tests, "--reruns", "1"] if quick else tests, check=False).returncode
    if not quick:
        code = subprocess.run([sys.executable, "-m", "tests.faults.takeover"], check=False).returncode or code
        for module in ("tests.faults.plain", "tests.faults.report"):
            subprocess.run([sys.executable, "-m", module], check=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
