"""The walls of the house: each module stands by itself, and importing the kit changes nothing."""

import json
import re
import subprocess
import sys
from pkgutil import walk_packages

import celery_kit
from celery_kit.base.target import ROOT

MODULES = sorted(one.name for one in walk_packages(celery_kit.__path__, "celery_kit."))
#: What a process has of Celery and kombu that somebody could change.
TABLES = """
import json, sys
{first}
from celery import Celery, signals
from celery.app.backends import BACKEND_ALIASES
from celery.concurrency import ALIASES
from kombu.transport import TRANSPORT_ALIASES
receivers = {{name: len(signal.receivers or ()) for name, signal in vars(signals).items() if hasattr(signal, "receivers")}}
print(json.dumps([BACKEND_ALIASES, ALIASES, TRANSPORT_ALIASES, receivers, Celery.task_cls, Celery.amqp_cls]))
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


#: So many at a time: an interpreter's start is most of what one takes. Each is alone in a forked child.
ALONE = """
import importlib, os, sys, traceback
failed = []
for name in sys.argv[1:]:
    if not (child := os.fork()):
        try:
            importlib.import_module(name)
        except (Exception, SystemExit):
            print(name, file=sys.stderr)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed += [name] * bool(os.waitpid(child, 0)[1])
sys.exit(f"cannot be imported alone: {failed}" if failed else 0)
"""


def test_each_module_can_be_imported_alone() -> None:
    """None of them counts on another having been imported before."""
    done = subprocess.run([sys.executable, "-c", ALONE, *MODULES], cwd=ROOT, capture_output=True, text=True)
    assert len(MODULES) > 60
    assert not done.returncode, done.stderr[-3000:]


def test_importing_the_kit_changes_nothing() -> None:
    """The effects come with Kit(...) or install(app), in the process that asked for them."""
    assert run(TABLES.format(first="import celery_kit")) == run(TABLES.format(first=""))


def test_importing_the_package_imports_nothing_heavy() -> None:
    found = json.loads(run("import json, sys, celery_kit; print(json.dumps(sorted(sys.modules)))"))
    assert not {"celery", "kombu", "redis", "amqp"} & set(found)


def test_no_module_is_longer_than_one_idea() -> None:
    long = [path for path in (ROOT / "celery_kit").rglob("*.py") if len(path.read_text().splitlines()) > 450]
    assert not long


def test_the_users_part_is_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "app").rglob("*.py")) < 500


def test_lua_stands_in_files_of_its_own() -> None:
    """Beside the module that uses it, where an editor knows what it is."""
    code = [path for folder in ("celery_kit", "bench") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in code if re.search(r"redis\.p?call\(", path.read_text())]
    assert all("redis.call(" in path.read_text() for path in (ROOT / "celery_kit").rglob("*.lua"))
