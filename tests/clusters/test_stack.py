"""A stack with a cluster, as a user types the commands: whole, with a node that is gone, and with two."""

import re
import subprocess

from celery_kit.brokers.rabbitmq.cluster import HOSTS
from tests.deploy.conftest import Checkout
from tests.deploy.test_doctor import found
from tests.harness.waiting import until


def node(checkout: Checkout, host: str, *words: str) -> str:
    """The output of a command of Docker on a node's container, as `("exec", "ls")`."""
    name = f"{checkout.environ['COMPOSE_PROJECT_NAME']}-{host}-1"
    argv = ["docker", words[0], name, *words[1:]]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def works(checkout: Checkout, *words: str) -> None:
    sent = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]', "WAIT=30", *words)
    assert "state     SUCCESS" in sent.stdout


def test_a_stack_loses_a_node_and_gets_it_back(checkout: Checkout) -> None:
    up = checkout.make("up", "BROKER=rabbitmq-cluster", "POOL=threads", "SCALE=2")
    assert up.returncode == 0 and "rabbitmq-cluster, threads, results by redis: running and healthy" in up.stdout
    assert "3 of 3 nodes run: rabbit@node-1, rabbit@node-2, rabbit@node-3" in checkout.make("status").stdout
    assert found(checkout) == []
    works(checkout)
    works(checkout, "COUNTDOWN=1")
    cookies = {node(checkout, host, "exec", "cat", "/var/lib/rabbitmq/.erlang.cookie") for host in HOSTS}
    assert len(cookies) == 1 and len(cookies.pop()) > 40
    assert node(checkout, HOSTS[0], "exec", "stat", "-c", "%a", "/var/lib/rabbitmq/.erlang.cookie") == "400\n"
    (url,) = re.findall(r"^CELERY_BROKER_URL=(.*)$", checkout.make("urls").stdout, re.MULTILINE)
    ports = [checkout.environ[name] for name in ("RABBITMQ_PORT", "RABBITMQ_SECOND_PORT", "RABBITMQ_THIRD_PORT")]
    assert sorted(re.findall(r"@127\.0\.0\.1:(\d+)/kit", url)) == sorted(ports)

    checkout.make("passwords", "RENEW=1")
    works(checkout)
    checkout.make("passwords", "RENEW=end")
    works(checkout)

    node(checkout, HOSTS[0], "kill")
    works(checkout)
    works(checkout, "COUNTDOWN=1")
    two = "2 of 3 nodes run: rabbit@node-2, rabbit@node-3"
    until("the others know it", lambda: two in checkout.make("status").stdout, 60)
    assert "only 2 of 3 nodes of the broker run (rabbit@node-1): one more, and its queues stop" in found(checkout)
    assert checkout.make("dead").returncode == 0

    node(checkout, HOSTS[0], "start")
    until("nothing is wrong", lambda: found(checkout) == [], 90)
    works(checkout)


def test_a_frozen_node_holds_up_no_command(checkout: Checkout) -> None:
    """`make send` meets it first, or not: it has a time limit for each node. All of it over TLS."""
    assert checkout.make("down", "VOLUMES=1").returncode == 0
    assert checkout.make("up", "BROKER=rabbitmq-cluster", "POOL=threads", "BACKEND=rpc", "SECURE=1").returncode == 0
    assert "at amqps://" in checkout.make("status").stdout
    for host in HOSTS:
        node(checkout, host, "pause")
        try:
            works(checkout)
        finally:
            node(checkout, host, "unpause")
        until("nothing is wrong", lambda: found(checkout) == [], 120)
