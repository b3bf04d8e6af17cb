"""Celery's tasks, for plain Celery's workers and the kit's alike: `celery worker -I bench.celerys`."""

from celery import shared_task

from bench.peers.work import WORK

for _name, _work in WORK.items():
    shared_task(name=f"bench.{_name}")(_work)
