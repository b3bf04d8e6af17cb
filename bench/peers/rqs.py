"""rq: `rq worker-pool bench`, in processes that do not fork for each job."""

import os
import sys

from redis import Redis
from rq import Queue

from bench.peers import work

if __name__ == "__main__":
    queue = Queue("bench", connection=Redis.from_url(os.environ["BROKER_URL"]))
    number, text = int(sys.argv[1]), "x" * int(sys.argv[3])
    for start in range(0, number, 500):
        jobs = [queue.prepare_data(work.WORK[sys.argv[2]], (text,)) for _ in range(min(500, number - start))]
        queue.enqueue_many(jobs)
