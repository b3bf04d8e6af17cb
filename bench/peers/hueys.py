"""huey: `huey_consumer bench.peers.hueys.huey`. It removes a task from the queue before it runs: a killed one is lost."""

import os
import sys

from huey import RedisHuey

from bench.peers.work import WORK

huey = RedisHuey("bench", url=os.environ["BROKER_URL"])
tasks = {name: huey.task(name=name)(work) for name, work in WORK.items()}

if __name__ == "__main__":
    text = "x" * int(sys.argv[3])
    for _ in range(int(sys.argv[1])):
        tasks[sys.argv[2]](text)
