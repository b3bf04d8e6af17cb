"""A producer whose tasks arrive at random moments: `python -m bench.arrivals RATE SECONDS TIME CPU BYTES`."""

import json
import random
import sys
import time
from dataclasses import dataclass

#: Seconds whose tasks are sent first, and not counted.
WARM_SECONDS = 2.0


@dataclass(frozen=True)
class Load:
    """Tasks that arrive at random (Poisson): `rate` in tasks/s, for `seconds`. A task takes `time` seconds on average, of which
    it computes `cpu`; the times of single tasks are exponentially distributed. `size` in bytes a task.
    """

    rate: float
    seconds: float
    time: float = 0.0
    cpu: float = 0.0
    size: int = 100


def send(load: Load) -> None:
    """Send the tasks of a load at their moments. Prints a line when the warm-up ends, and then what was sent, as JSON."""
    from app import app

    random.seed(1)  # the same moments in each round
    text, share = "x" * load.size, load.cpu / load.time if load.time else 0.0
    began, counts = time.monotonic(), [0, 0]
    since, due = 0.0, began
    while (due := due + random.expovariate(load.rate)) < began + WARM_SECONDS + load.seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        counted = due >= began + WARM_SECONDS
        if counted and not counts[1]:
            print(flush=True)
            since = time.time()
        takes = random.expovariate(1 / load.time) if load.time else 0.0
        app.send_task("bench.timed", (time.time(), takes * (1 - share), takes * share, text), queue="bench")
        counts[counted] += 1
    seconds = time.monotonic() - began - WARM_SECONDS
    print(json.dumps({"warm": counts[0], "counted": counts[1], "since": since, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    rate, seconds, takes, cpu = map(float, sys.argv[1:5])
    send(Load(rate, seconds, takes, cpu, int(sys.argv[5])))
