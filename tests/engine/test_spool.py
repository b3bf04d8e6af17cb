"""The spool on a real Redis: a task that the broker refuses delays only tasks of the same queue."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from celery_kit.base.target import ROOT
from tests.harness.certificates import certificate
from tests.harness.servers import Server

#: Spools a task for each destination in the arguments, without connecting to the broker, and prints their ids.
ACCEPT = """
import json, sys
from app import app
from celery_kit.produce import spool

spool.Spool.forward_in_background = lambda *_: None
for number, place in enumerate(sys.argv[1:]):
    options = {"task_id": f"{app.oid}-{number}", **json.loads(place)}
    print(app.spooled.accept("some.task", (), {}, None, None, options).id)
"""


@pytest.fixture
def environ(server: Server, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **server.urls, "SPOOL": str(tmp_path / "spool"), "PUBLISH_TIMEOUT": "1"}


def run(environ: dict[str, str], *argv: str) -> tuple[int, list[str], list[str]]:
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def spooled(environ: dict[str, str], *places: dict[str, str]) -> list[str]:
    """Spool tasks for these destinations, which are options of apply_async. Returns their ids."""
    code, ids, err = run(environ, "-c", ACCEPT, *map(json.dumps, places))
    assert code == 0, err
    return ids


def test_a_queue_that_takes_nothing_keeps_its_own_tasks_alone(server: Server, environ: dict[str, str], tmp_path: Path) -> None:
    """Tasks that the broker refuses wait in order. Tasks for other queues are sent."""
    full, free = f"full-{uuid4()}", f"free-{uuid4()}"
    server.broker.set(full, "no list")
    first, second, third, fourth = spooled(environ, *({"queue": queue} for queue in (full, free, full, free)))
    code, out, err = run(environ, "-m", "celery_kit.operate.look.send", "forward")
    assert (code, out) == (2, [second, fourth])
    assert err[-1].startswith("celery-kit: 2 tasks stay in ") and not any("Traceback" in line for line in err)
    assert sum("waits: " in line and "WRONGTYPE" in line for line in err) == 1
    server.broker.delete(full)
    assert run(environ, "-m", "celery_kit.operate.look.send", "forward")[:2] == (0, [first, third])
    assert server.broker.llen(full) == 2


def test_a_file_that_cannot_be_read_is_named_in_a_line(server: Server, environ: dict[str, str], tmp_path: Path) -> None:
    """Each command that forwards the spool names the file that cannot be sent, without a traceback."""
    (only,) = spooled(environ, {"queue": f"free-{uuid4()}"})
    (tmp_path / "spool/0.task").write_text("no JSON")
    for sent in ([only], []):
        code, out, err = run(environ, "-m", "celery_kit.operate.look.send", "forward")
        assert (code, out, len(err)) == (2, sent, 2)
        assert err[0].startswith(f"{tmp_path}/spool/0.bad cannot be sent: BadFileError")
        assert err[1].startswith("celery-kit: 1 tasks stay in ")


def test_where_messages_are_signed_an_unsigned_file_is_not_sent(environ: dict[str, str], tmp_path: Path) -> None:
    """Messages from the disk have to be signed like those from the broker."""
    key, made = certificate("spool")
    for name, pem in (("key", key), ("certificate", made)):
        (tmp_path / name).write_bytes(pem)
        environ[f"SECURITY_{name.upper()}"] = str(tmp_path / name)
    environ["SECURITY_CERT_STORE"] = str(tmp_path / "certificate")
    (only,) = spooled(environ, {"queue": f"free-{uuid4()}"})
    call = {"name": "some.task", "task_id": "forged", "args": [], "kwargs": {}, "options": {}}
    body = base64.b64encode(json.dumps(call).encode()).decode()
    forged = {"task": "some.task", "id": "forged", "type": "application/json", "encoding": "utf-8", "call": body}
    (tmp_path / "spool/0.task").write_text(json.dumps(forged))
    code, out, err = run(environ, "-m", "celery_kit.operate.look.send", "forward")
    assert (code, out) == (2, [only]), err
    assert "0.bad cannot be sent: BadFileError: ContentDisallowed" in err[0]
