"""eventlet: fixes eventlet_dns (by a name server of this test's own), eventlet_import and eventlet_timers."""

import os
import subprocess
import sys

import pytest

from celery_kit.base.target import ROOT

#: Prints what three questions in a row are answered. The server names another address each time, to be kept for ten minutes.
LOOK = """
import eventlet
eventlet.monkey_patch()
{fix}
import itertools, socket
import dns.message, dns.rrset
from eventlet.support import greendns

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
addresses = itertools.count(1)

def serve():
    while True:
        data, client = server.recvfrom(4096)
        question = dns.message.from_wire(data)
        answer = dns.message.make_response(question)
        name = question.question[0].name
        answer.answer.append(dns.rrset.from_text(name, 600, "IN", "A", f"10.0.0.{{next(addresses)}}"))
        server.sendto(answer.to_wire(), client)

eventlet.spawn(serve)
resolver = greendns.ResolverProxy()
resolver._resolver.nameservers, resolver._resolver.port = ["127.0.0.1"], server.getsockname()[1]
for _ in range(3):
    print(resolver.query("broker.test.")[0])
"""


def said(program: str, fix: str) -> list[str]:
    environ = {**os.environ, "BROKER": "redis", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    argv = [sys.executable, "-c", program.format(fix=fix)]
    return subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("fix", "seen"),
    [
        ("import app", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        # If this one fails, the fix eventlet_dns is no longer needed.
        ("", ["10.0.0.1", "10.0.0.1", "10.0.0.1"]),
    ],
    ids=["celery-kit", "eventlet alone"],
)
def test_a_name_is_looked_up_each_time(fix: str, seen: list[str]) -> None:
    assert said(LOOK, fix) == seen


#: Prints whether eventlet's resolver is there: after a look at an address, and after one at a name.
NAMES = """
import celery_kit.worker.early, socket, sys
for host in (None, "127.0.0.1", "::1", "localhost"):
    found = socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)[0][4]
    print("eventlet.support.greendns" in sys.modules, found[0], found[1])
print(sys.modules["eventlet.support.greendns"].ResolverProxy.clear.__name__)
"""


def test_an_address_is_no_name_and_the_resolver_that_comes_with_one_keeps_no_answers() -> None:
    environ = {**os.environ, "POOL": "eventlet"}
    argv = [sys.executable, "-W", "ignore", "-c", NAMES, "app.worker"]
    environ |= {"BROKER": "redis", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    run = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    *looks, clear = run.stdout.splitlines()
    assert [look.split()[0] for look in looks] == ["False", "False", "False", "True"]
    assert [look.split()[1] for look in looks[1:3]] == ["127.0.0.1", "::1"]
    assert clear == "clear_without_cache"


#: Prints how often the loop waits in half a second, in which fifty timers would be due that are cancelled.
TIMERS = """
import eventlet
eventlet.monkey_patch()
{fix}
from eventlet.hubs import get_hub
hub, waits = get_hub(), []
wait = hub.wait

def counted(seconds):
    waits.append(seconds)
    return wait(seconds)

hub.wait = counted
timers = [hub.schedule_call_global(0.05 + n / 125, print, "fired") for n in range(50)]
fires = hub.schedule_call_global(0.25, print, "wanted")
eventlet.sleep(0)  # as a loop that has run since: they are among its timers
for timer in timers:
    timer.cancel()
eventlet.sleep(0.5)
print(len(waits), len(hub.timers), hub.timers_canceled)
"""


@pytest.mark.parametrize(
    ("fix", "seldom"),
    [
        ("import app", True),
        # If this one fails, the fix eventlet_timers is no longer needed.
        ("", False),
    ],
    ids=["celery-kit", "eventlet alone"],
)
def test_a_cancelled_timer_does_not_wake_the_loop(fix: str, seldom: bool) -> None:
    fired, counts = said(TIMERS, fix)
    number, left, cancelled = map(int, counts.split())
    assert (fired, left, cancelled) == ("wanted", 0, 0)
    assert (number < 20) is seldom
