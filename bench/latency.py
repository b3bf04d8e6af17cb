"""What waits for a result: `python -m bench.latency plain|kit` reads a number from each line of its input, sends so many tasks,
each once the last one's result is there, and prints a line: how long each took, in ms.
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
