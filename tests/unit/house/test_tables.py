"""The tables, and the files that have a line for each of their rows."""

import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import yaml
from celery.concurrency import get_available_pool_names, get_implementation
from celery.utils.imports import symbol_by_name

from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.pools.table import POOLS
from celery_kit.pools.time_limits import TimeLimits
from testbed.servers import EVERY
from tests.packages.table import TABLE, versions


def test_every_pool_is_one_of_celerys_and_keeps_to_both_time_limits() -> None:
    assert set(POOLS) <= set(get_available_pool_names())
    for pool in POOLS.values():
        if not pool.sockets_patched:
            kind = symbol_by_name(pool.kind)
            assert issubclass(kind, get_implementation(pool.name)), kind
            assert issubclass(kind, TimeLimits) or set(pool.celerys_time_limits) == {"soft", "hard"}


def test_every_pool_has_its_image() -> None:
    stages = re.findall(r"^FROM deps AS deps-(?!monitor)(\w+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert sorted(stages) == sorted(POOLS)


def test_every_broker_with_a_stack_has_its_file_and_its_row_in_the_tests() -> None:
    stacks = {name: broker.compose_file for name, broker in BROKERS.items() if broker.compose_file}
    assert stacks == {name: f"compose.{name}.yaml" for name in EVERY}
    assert all((ROOT / file).exists() for file in stacks.values())


def service(file: Path, name: str) -> dict[str, Any]:
    """A service of a compose file, with what it inherits by `extends`."""
    found: dict[str, Any] = yaml.safe_load(file.read_text())["services"][name]
    base = found.get("extends")
    inherited = service((file.parent / base["file"]) if "file" in base else file, base["service"]) if base else {}
    return inherited | found


def test_the_log_of_each_service_of_a_stack_is_bounded() -> None:
    for file in ROOT.glob("compose.*.yaml"):
        for name in yaml.safe_load(file.read_text())["services"]:
            kept = service(file, name)
            assert {"max-size", "max-file"} <= set(kept["logging"]["options"]), f"{file.name}: {name}"
            assert kept["logging"]["driver"] in ("local", "json-file"), "the drivers that have these options"
            assert kept["restart"] == "unless-stopped"


def test_brokers_that_share_a_scheme_share_their_limits() -> None:
    for one, other in combinations(BROKERS.values(), 2):
        if set(one.schemes) & set(other.schemes):
            assert (one.limits, one.backend_limits) == (other.limits, other.backend_limits)


def test_every_host_of_a_broker_is_a_service_of_its_stack() -> None:
    for name, server in EVERY.items():
        services = yaml.safe_load((ROOT / f"compose.{name}.yaml").read_text())["services"]
        assert set(BROKERS[name].hosts) == set(server.hosts) <= services.keys()


def test_products_are_named_in_their_own_rooms_only() -> None:
    """The rooms, the tables that name them, and sentences for people; no branch anywhere."""
    products = "|".join(EVERY)
    branch = re.compile(rf"""(==|!=|\bin\b)\s*[("'\[]*({products})["']""")
    rooms = {ROOT / "celery_kit/brokers", ROOT / "celery_kit/results"}
    code = [path for path in (ROOT / "celery_kit").rglob("*.py") if not rooms & {*path.parents}]
    assert code and not [f"{path}: {line}" for path in code for line in path.read_text().splitlines() if branch.search(line)]


def test_every_recipe_of_the_makefile_is_one_line() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    assert not [pair for pair in pairwise(lines) if pair[0].startswith("\t") and pair[1].startswith("\t")]


def test_locks_agree_hold_hashes_and_name_no_index() -> None:
    pins: dict[str, set[str]] = {}
    for lock in Path(ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        assert "://" not in text and "--index" not in text, lock
        own = {"celery", "kombu", "redis"} if lock.stem.startswith("celery-") else set[str]()  # those of an earlier Celery
        for name, rest in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE):
            if name not in own:
                pins.setdefault(name.lower(), set()).add(rest)
        assert text.count("==") <= text.count("--hash=sha256:"), lock
    assert not {name: versions for name, versions in pins.items() if len(versions) > 1}


def test_every_package_of_the_page_is_locked_and_has_its_test() -> None:
    tests = set(re.findall(r"^def (test_\w+)", (ROOT / "tests/packages/test_packages.py").read_text(), re.MULTILINE))
    assert versions().keys() >= TABLE.keys()
    assert tests >= {row.test for row in TABLE.values()}
