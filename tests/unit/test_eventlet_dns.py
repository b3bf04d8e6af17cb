"""A name whose address changes, as eventlet's resolver sees it; by a name server of this test's own."""

import os
import subprocess
import sys

import pytest

from app.stack import ROOT

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


def addresses(fix: str) -> list[str]:
    environ = {**os.environ, "BROKER": "redis", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    run = subprocess.run(
        [sys.executable, "-c", LOOK.format(fix=fix)], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    return run.stdout.split()


@pytest.mark.parametrize(
    ("fix", "seen"),
    [
        ("import app", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        # If this one fails, `app/fixes/eventlet_dns.py` is no longer needed.
        ("", ["10.0.0.1", "10.0.0.1", "10.0.0.1"]),
    ],
    ids=["celery-kit", "eventlet alone"],
)
def test_a_name_is_looked_up_each_time(fix: str, seen: list[str]) -> None:
    assert addresses(fix) == seen
