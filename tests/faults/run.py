"""`make test-faults`: the trials on celery-kit, the same on plain Celery, and the report of both.

QUICK=1 runs each fault on one pool a broker, without plain Celery and without a report, and tries once more what failed.
BROKER= and POOL= choose some.
"""

import os
import subprocess
import sys

#: Setups at once; each is mostly waiting.
AT_ONCE = "4"


def main() -> None:
    quick = bool(os.environ.get("QUICK"))
    tests = [sys.executable, "-m", "pytest", "tests/faults/test_faults.py", "-n", AT_ONCE, "-q", "--no-header"]
    code = subprocess.run([*tests, "--reruns", "1"] if quick else tests, check=False).returncode
    if not quick:
        for module in ("tests.faults.plain", "tests.faults.report"):
            subprocess.run([sys.executable, "-m", module], check=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
