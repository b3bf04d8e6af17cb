"""The kit's producer: `python -m bench.kit NUMBER WORK BYTES` sends tasks by send_many."""

import sys

import app  # noqa: F401  # the app of this process
import bench.celerys  # noqa: F401  # its tasks
from celery_kit.produce.send import send_many


def main() -> None:
    number, work, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    text = "x" * size
    for start in range(0, number, 10_000):
        send_many(f"bench.{work}", [(text,)] * min(10_000, number - start), queue="bench")


if __name__ == "__main__":
    main()
