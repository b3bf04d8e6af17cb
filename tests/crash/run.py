"""`make test-crash`: run the trials, the brokers in parallel, and write the report. PART= BROKER= POOL= ENGINE= select trials.

Each trial's figures are a line of reports/crash.jsonl. The report has the last of each, so that a run can be done in parts.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

from celery_kit.base.refusals import choose
from celery_kit.pools.table import POOLS
from testbed.places import Servers
from tests.crash import report
from tests.crash.setup import ALL_ENGINES, BROKERS, Setup
from tests.crash.trials import PARTS, Figures, trials

AXES: tuple[tuple[str, Iterable[str]], ...] = (("BROKER", BROKERS), ("PART", PARTS), ("POOL", POOLS), ("ENGINE", ALL_ENGINES))


def chosen(variable: str, names: Iterable[str]) -> tuple[str, ...]:
    """The values of an axis that its variable names, separated by commas; all, if it is not set."""
    given = os.environ.get(variable)
    return tuple(choose(variable, name, names) for name in given.split(",")) if given else tuple(names)


def run(broker: str) -> None:
    """All chosen trials of a broker, one after the other."""
    _, parts, pools, engines = (chosen(*axis) for axis in AXES)
    wanted = [(part, pool, engine) for part in parts for pool, engine in trials(part, broker, pools, engines)]
    if not wanted:
        return
    with Servers(broker) as servers:
        for part, pool, engine in wanted:
            name = {"part": part, "broker": broker, "pool": pool, "engine": engine}
            outcome = {**name, **trial(servers, **name)}
            report.note(outcome)
            print({key: value for key, value in outcome.items() if key not in {"marks", "cpu", "last_words"}}, flush=True)


def trial(servers: Servers, part: str, broker: str, pool: str, engine: str) -> Figures:
    """Run one trial. Errors are recorded in its figures, never raised."""
    began, figures = time.monotonic(), {"server": servers.version()}
    with servers.place() as place, Setup(place, broker, pool, engine, PARTS[part].concurrency) as setup:
        try:
            figures |= PARTS[part].run(setup)
        except Exception as error:
            figures["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        figures["last_words"] = setup.log.read_text()[-2000:] if setup.log.exists() else ""
    return {**figures, "seconds": round(time.monotonic() - began)}


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # exit by an exception, so that everything started is removed
    brokers, *_ = (chosen(*axis) for axis in AXES)
    if len(brokers) == 1:
        run(brokers[0])
    else:
        argv = [sys.executable, "-m", "tests.crash.run"]
        runs = [subprocess.Popen(argv, env={**os.environ, "BROKER": broker, "WITHOUT_REPORT": "1"}) for broker in brokers]
        codes = [one.wait() for one in runs]
        if any(codes):
            sys.exit(1)
    if not os.environ.get("WITHOUT_REPORT"):
        report.main()


if __name__ == "__main__":
    main()
