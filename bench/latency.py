"""An idle stack: `python -m bench.latency plain|kit NUMBER` sends a task, waits for its result, and so on; prints ms."""

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
    times = []
    for number in range(int(sys.argv[2]) + 10):
        began = time.perf_counter()
        app.send_task("bench.noop", ("x",), queue="bench").get(timeout=30)
        if number >= 10:
            times.append((time.perf_counter() - began) * 1_000)
        time.sleep(0.01)
    print(json.dumps(times))


if __name__ == "__main__":
    main()
