"""The walls of the house: each module stands by itself, and importing the kit changes nothing."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import walk_packages

import pytest

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


#: The modules by package; those of celery_kit itself are in "".
BY_PACKAGE: dict[str, list[str]] = {}
for name in MODULES:
    BY_PACKAGE.setdefault(name.split(".")[1] if name.count(".") > 1 else "", []).append(name)


@pytest.mark.parametrize("package", BY_PACKAGE)
def test_each_module_can_be_imported_alone(package: str) -> None:
    """None of them counts on another having been imported before."""
    done = subprocess.run([sys.executable, "-c", ALONE, *BY_PACKAGE[package]], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]


#: Of modules that are imported, those whose package has another thing by their name.
HIDDEN = """
import sys
from importlib import import_module
for name in {names}:
    import_module(name)
    package, _, module = name.rpartition(".")
    if getattr(sys.modules[package], module) is not sys.modules[name]:
        print(name)
"""


def test_no_name_of_a_package_hides_one_of_its_modules() -> None:
    """`celery_kit.brokers.redis` is the module, whatever else the package has a name for."""
    assert run(HIDDEN.format(names=MODULES)) == ""


def test_importing_the_kit_changes_nothing() -> None:
    """The effects come with Kit(...) or install(app), in the process that asked for them."""
    assert run(TABLES.format(first="import celery_kit")) == run(TABLES.format(first=""))


def test_importing_the_package_imports_nothing_heavy() -> None:
    found = json.loads(run("import json, sys, celery_kit; print(json.dumps(sorted(sys.modules)))"))
    assert not {"celery", "kombu", "redis", "amqp"} & set(found)


def test_no_module_is_longer_than_one_idea() -> None:
    kit = ROOT / "celery_kit"
    assert not [path for path in kit.rglob("*.py") if len(path.read_text().splitlines()) > 400]


def test_the_users_part_is_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in (ROOT / "app").rglob("*.py")) < 500


def test_lua_stands_in_files_of_its_own() -> None:
    """Beside the module that uses it, where an editor knows what it is."""
    code = [path for folder in ("celery_kit", "bench") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in code if re.search(r"redis\.p?call\(", path.read_text())]
    assert all("redis.call(" in path.read_text() for path in (ROOT / "celery_kit").rglob("*.lua"))


#: The packages of the products.
PACKAGES = {
    f"{floor}/{path.name}/": path.name
    for floor in ("brokers", "results")
    for path in (ROOT / "celery_kit" / floor).iterdir()
    if (path / "__init__.py").exists()
}
#: Servers that the kit works with. AMQP is a protocol, and `app.amqp` Celery's word.
PRODUCT = re.compile("|".join({"valkey", *(name.removesuffix("mq") for name in PACKAGES.values())}), re.IGNORECASE)
#: Where code may name a product: the product's own package, the tables that list them, and where else there is a reason.
ROOMS = {
    **PACKAGES,
    "brokers/embedded.py": "the embedded broker is a Valkey",
    "brokers/__init__.py": "THE table of brokers",
    "results/__init__.py": "THE table of result backends",
    "fixes/__init__.py": "THE table of fixes names where each stands",
    "kit.py": "two bootsteps of RabbitMQ's, by name",
    "once.py": "claims are kept in Redis alone",
    "results/contract.py": "claims, likewise",
    "results/rpc.py": "a link into Celery's documentation",
    "engine/parts.py": "what each of the engine's parts is called",
    "profile.py": "the combination where nobody chooses",
    "operate/options.py": "the same default, for a stack",
    "operate/stacks/embedded.py": "the embedded broker's pid file",
}


def code_of(path: Path) -> Iterator[str]:
    """Names, imports and strings of a module: not its comments, docstrings, and messages, which are sentences."""
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("id", "attr", "name", "arg", "module", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield word
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            yield node.value


def test_a_products_name_is_in_its_room_alone() -> None:
    """Whoever adds or removes a product touches its packages and the tables."""
    kit = ROOT / "celery_kit"
    naming = {str(path.relative_to(kit)) for path in kit.rglob("*.py") if any(map(PRODUCT.search, code_of(path)))}
    assert not {path for path in naming if not path.startswith(tuple(ROOMS))}
    assert not {room for room in ROOMS if not any(path.startswith(room) for path in naming)}, "no longer needed"


def test_a_command_imports_no_client_that_it_may_not_need() -> None:
    """That of Redis is a third of the time of a command that only starts something."""
    assert run("import sys, celery_kit.operate.cli; print('redis' in sys.modules)") == "False\n"
