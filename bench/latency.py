"""A client that waits for results: `python -m bench.latency plain|kit`.

It reads a number of tasks from each line of its input. It sends each task after the result of the one before has arrived, and
prints a line with the latency of each, in ms.
"""

import json
import sys
import time
from typing import Any


def main() -> None:
    app: Any
    if sys.argv[1] == "plain":
        from bench.plain import app
    else:
        from app import app
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            app.send_task("bench.noop", ("x",), queue="bench").get(timeout=30)
            times.append((time.perf_counter() - began) * 1_000)
            time.sleep(0.01)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
