"""A stack with a primary and replicas, as a user types the commands: whole, with another primary, and without replicas."""

import re

from celery_kit.brokers.redis.broker import SERVERS
from tests.clusters.test_stack import node, works
from tests.deploy.conftest import Checkout
from tests.deploy.test_doctor import found
from tests.harness.waiting import until


def test_a_stack_loses_its_primary_and_gets_it_back(checkout: Checkout) -> None:
    up = checkout.make("up", "BROKER=redis-sentinel", "POOL=threads", "SCALE=2")
    assert up.returncode == 0 and "redis-sentinel, threads, results by redis: running and healthy" in up.stdout
    assert "2 of 2 replicas follow the primary: broker-2, broker-3" in checkout.make("status").stdout
    assert found(checkout) == []
    works(checkout)
    works(checkout, "COUNTDOWN=1")
    said = checkout.make("urls").stdout
    assert len(re.findall(r"sentinel://[^@]+@127\.0\.0\.1:\d+/0", said)) == 3
    assert len(re.findall(r"broker-\d:6379=127\.0\.0\.1:\d+", said)) == 3
    renewed = checkout.make("passwords", "RENEW=1")
    assert renewed.returncode == 2 and "several servers share its passwords: they are made once" in renewed.stderr

    node(checkout, SERVERS[0], "kill")
    works(checkout)
    works(checkout, "COUNTDOWN=1")
    assert "only 1 of 2 replicas of the broker follow its primary: one more, and it refuses to write" in found(checkout)
    assert checkout.make("dead").returncode == 0

    node(checkout, SERVERS[0], "start")
    until("nothing is wrong", lambda: found(checkout) == [], 90)
    works(checkout)


def test_what_it_has_not_is_said_and_nothing_starts(checkout: Checkout) -> None:
    done = checkout.make("up", "BROKER=redis-sentinel", "SECURE=1")
    assert done.returncode == 2 and "SECURE=1: the stack of BROKER=redis-sentinel has no TLS" in done.stderr
