"""What a worker's process does before anything else is imported."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from celery_kit.base.target import ROOT
from celery_kit.worker.early import pool

#: Prints which modules there are, in the order in which they came to be; how often the packages' plugins were read.
LOOK = """
import json, sys
from importlib import metadata
read, reads = metadata.entry_points, []
def entry_points(**chosen):
    reads.append(chosen)
    return read(**chosen)
metadata.entry_points = entry_points
events = []
class Watch:
    def find_spec(self, name, path, target=None):
        events.append(name)
sys.meta_path.insert(0, Watch())
import app
print(json.dumps({"events": events, "reads": len(reads)}))
"""


def start(pool: str) -> tuple[dict[str, Any], str]:
    """What a worker of this pool has imported, and what it has said."""
    environ = {**os.environ, "POOL": pool, "BROKER": "redis", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    argv = [sys.executable, "-c", LOOK, "app.worker"]
    run = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout)), run.stderr


@pytest.mark.parametrize(("name", "patches"), [("gevent", "gevent.monkey"), ("eventlet", "eventlet.patcher")])
def test_green_sockets_come_before_what_celery_and_kombu_are_made_of(name: str, patches: str) -> None:
    """The package celery alone is there. Each looks for locks in what is: eventlet says which it cannot mend."""
    seen, said = start(name)
    assert seen["events"].index(patches) < min(seen["events"].index("celery._state"), seen["events"].index("kombu"))
    assert "not greened" not in said


def test_eventlets_resolver_is_not_imported_before_there_is_a_name_to_look_up() -> None:
    seen, _ = start("eventlet")
    assert "eventlet.support.greendns" not in seen["events"]
    assert "dns" not in seen["events"]


@pytest.mark.parametrize("name", ["gevent", "solo"])
def test_what_is_installed_is_read_once(name: str) -> None:
    seen, _ = start(name)
    assert seen["reads"] == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["-P", "gevent"], "gevent"),
        (["--pool", "threads", "-c", "2"], "threads"),
        (["--pool=eventlet"], "eventlet"),
        (["-c", "2"], "solo"),
        (["--pool"], ""),
    ],
)
def test_the_command_line_names_the_pool_or_the_environment_does(options: list[str], named: str) -> None:
    assert pool(["python", "-m", "app.worker", *options], "solo") == named
