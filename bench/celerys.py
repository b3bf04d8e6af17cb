"""Celery's tasks, for plain Celery's workers and the kit's alike: `celery worker -I bench.celerys`."""

import time

from celery import shared_task

from bench.peers.work import WORK

for _name, _work in WORK.items():
    shared_task(name=f"bench.{_name}")(_work)


@shared_task(name="bench.timed")
def timed(sent: float, waits: float, computes: float, text: str) -> tuple[float, float]:
    """Wait and compute for some seconds. Returns when it was sent, and the seconds until it began."""
    wait, until = time.time() - sent, time.thread_time() + computes
    while time.thread_time() < until:
        pass
    time.sleep(waits)
    return sent, wait
