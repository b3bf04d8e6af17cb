"""The same trials on plain Celery, for the side-by-side table: `python -m tests.faults.plain [FAULT …]`. It asserts nothing.

BROKER= and POOL= select trials. QUICK=1 runs each fault on one pair of each broker.
"""

import os
import signal
import sys
from itertools import groupby

from tests.faults import report
from tests.faults.setup import Setup
from tests.faults.test_faults import TRIALS, some
from tests.faults.trial import trial
from tests.harness.containers import clean


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = [one for one in (some() if os.environ.get("QUICK") else TRIALS) if not sys.argv[1:] or one[1].name in sys.argv[1:]]
    try:
        for _, trials in groupby(sorted(wanted, key=lambda one: str(one[0])), key=lambda one: str(one[0])):
            setup = None
            for pair, fault in trials:
                setup = setup or Setup(pair, "plain")
                outcome = trial(setup, fault)
                report.note(outcome)
                print(f"{pair} {fault.name}: {report.cell(outcome.as_dict())}", flush=True)
                if outcome.error or outcome.lost or outcome.flowing is None:
                    setup.close()
                    setup = None
            if setup:
                setup.close()
    finally:
        clean()


if __name__ == "__main__":
    main()
