"""Celery's own integration suite with the kit installed in its app, beside plain Celery, on servers as our stacks have them.

`make test-upstream` fetches the suite from the package index (it is never kept in this repository), runs each of its modules in
a process of its own on every side, and writes docs/reports/upstream.md. A test that ends otherwise than on plain Celery needs a
row in `reasons.py`; one without is an error. KIT=1 runs two sides, the kit as users have it and plain Celery. PAIRS, WORKERS,
SIDES and MODULES choose some, by name; what an earlier run has found of the others stays in the report, and MISSING=1 goes on
where it ended; FAILED=1 runs only what has failed there. AT_ONCE= run at a time. REPORT=1 runs nothing and writes the report.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import docker
from dotenv import dotenv_values

from celery_kit.base.target import ROOT
from testbed.environments import UPSTREAM
from testbed.servers.contract import ADMIN, PASSWORD
from testbed.stack import Stack
from tests.harness.containers import LABELS
from tests.harness.waiting import until
from tests.upstream.report import CELERY, HOME, Outcomes, Run, write

MODULE_SECONDS = 3_600
#: Broker and result backend, as the suite's environment names them: host and port of each come from the servers.
PAIRS = {
    "rabbitmq+redis": ("pyamqp://kit:kit@127.0.0.1:{rabbitmq}/kit", "redis://{account}127.0.0.1:{redis}"),
    "redis+redis": ("redis://{account}127.0.0.1:{redis}", "redis://{account}127.0.0.1:{redis}"),
    "rabbitmq+rpc": ("pyamqp://kit:kit@127.0.0.1:{rabbitmq}/kit", "rpc"),
}
#: Where the suite's worker is: on prefork in a process of its own, as users have it; in the tests' process, on the suite's
#: pool, and on the one that celery.contrib.pytest starts where nobody chooses.
WORKERS = ("process", "prefork", "solo")
#: Those of the servers; and the account in the URLs of Redis, which begins them.
Ports = dict[str, int | str]


def fetch() -> Path:
    """The suite's folder, from Celery's source distribution."""
    folder = HOME / f"celery-{CELERY}"
    if not folder.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(HOME)]
        subprocess.run([*pip, f"celery=={CELERY}"], check=True)
        with tarfile.open(HOME / f"celery-{CELERY}.tar.gz") as source:
            source.extractall(HOME, filter="data")
    return folder


@contextmanager
def as_our_stack(which: str, names: Sequence[str]) -> Iterator[Ports]:
    """The servers of compose.rabbitmq.yaml."""
    services = {"rabbitmq": ("broker", 5672), "redis": ("results", 6379)}
    with Stack("rabbitmq", which, [services[name][0] for name in names]) as stack:
        ports = {name: stack.port(port, service) for name, (service, port) in services.items() if name in names}
        yield {"account": f"{ADMIN}:{PASSWORD}@", **ports}  # the suite empties its databases


@contextmanager
def plain(_: str, names: Sequence[str]) -> Iterator[Ports]:
    """The same images without a line of configuration of ours."""
    client, images = docker.from_env(), {**dotenv_values(ROOT / ".env"), **os.environ}
    account = {f"RABBITMQ_DEFAULT_{part}": "kit" for part in ("USER", "PASS", "VHOST")}
    wanted = {
        "rabbitmq": (images.get("RABBITMQ_IMAGE") or "rabbitmq:4-management", 5672, account),
        "redis": (images.get("REDIS_IMAGE") or "redis:8", 6379, {}),
    }
    probes = {"rabbitmq": "gosu rabbitmq rabbitmq-diagnostics -q check_port_connectivity", "redis": "redis-cli ping"}
    with ExitStack() as started:
        ports: Ports = {"account": ""}
        for name in names:
            image, port, environ = wanted[name]
            container = client.containers.run(
                image, detach=True, environment=environ, labels=LABELS, ports={f"{port}/tcp": ("127.0.0.1", None)}
            )
            started.callback(container.remove, force=True, v=True)
            container.reload()
            until(f"plain {name} starts", lambda c=container: c.status == "running", 30)  # type: ignore[misc]
            until(f"plain {name} answers", lambda c=container, n=name: c.exec_run(probes[n]).exit_code == 0, 120)  # type: ignore[misc]
            container.reload()
            ports[name] = int(container.ports[f"{port}/tcp"][0]["HostPort"])
        yield ports


@dataclass(frozen=True)
class Side:
    """Whether the kit is installed in the suite's app, with which `engine` (None: it is not), which servers and workers."""

    engine: str | None
    servers: Callable[[str, Sequence[str]], AbstractContextManager[Ports]]
    workers: tuple[str, ...] = WORKERS


SIDES = {
    "fast": Side("fast", as_our_stack),
    "plain": Side("plain", as_our_stack),
    "celery": Side(None, as_our_stack),
    "bare": Side(None, plain, ("prefork",)),
}
#: Of them, those of KIT=1.
KIT = ("fast", "celery")
#: Combinations of a side, a pair and a worker that run at a time, each on servers of its own. The suite mostly waits.
AT_ONCE = 4


def environment(side: Side, pair: str, worker: str, ports: Ports) -> dict[str, str]:
    broker, backend = (address.format(**ports) for address in PAIRS[pair])
    environ = {
        **{name: value for name, value in os.environ.items() if name not in ("BROKER", "BACKEND", "ENGINE", "POOL")},
        # The suite runs `celery` in a shell's way.
        "PATH": f"{UPSTREAM.folder / 'bin'}:{os.environ['PATH']}",
        "TEST_BROKER": broker,
        "TEST_BACKEND": backend,
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(ports["redis"]),
        "WORKER_LOGLEVEL": "INFO",
        "SUITE_WORKER": worker,
        "PYTHONPATH": str(ROOT),
    }
    if side.engine:
        environ["ENGINE"] = side.engine
    return environ


def run(suite: Path, environ: dict[str, str], what: list[str], seconds: float = MODULE_SECONDS) -> Outcomes:
    """Run a module, or some of its tests; gives each test's outcome."""
    module = Path(what[0].partition("::")[0]).stem
    results = HOME / f"results-{environ['REDIS_PORT']}.xml"
    results.unlink(missing_ok=True)
    command = [UPSTREAM.command("python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.upstream.kit_app"]
    try:
        done = subprocess.run(
            [*command, f"--junitxml={results}", *what],
            cwd=suite, env=environ, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {f"t.integration.{module}.as a whole": f"no end within {seconds:g} s"}
    if not results.exists():
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        return {f"t.integration.{module}.as a whole": "did not start"}
    outcomes = {}
    for case in ElementTree.parse(results).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcomes[f"{case.get('classname')}.{case.get('name')}"] = next(iter(kinds), "passed")
    return outcomes


def address(test: str) -> str:
    """A test's, as pytest takes it."""
    name, brackets, rest = test.partition("[")
    module, *within = name.removeprefix("t.integration.").split(".")
    return f"t/integration/{module}.py::{'::'.join(within)}{brackets}{rest}"


def again(suite: Path, environ: dict[str, str], outcomes: Outcomes) -> Outcomes:
    """The same, where tests that failed were run a second time: what fails by chance alone passes then."""
    failed = [test for test, outcome in outcomes.items() if outcome in ("failure", "error") and test.startswith("t.")]
    second = run(suite, {**environ, "AGAIN": "1"}, [address(test) for test in failed]) if failed else {}
    return {test: second.get(test, outcome) if test in failed else outcome for test, outcome in outcomes.items()}


def run_combination(suite: Path, modules: list[str], found: Run, which: tuple[str, str, str]) -> None:
    name, pair, worker = which
    # The suite itself asks a Redis, on each pair.
    names = ["redis"] if pair == "redis+redis" else ["rabbitmq", "redis"]
    with SIDES[name].servers("".join(filter(str.isalpha, "".join(which))), names) as ports:
        environ = environment(SIDES[name], pair, worker, ports)
        for module in modules:
            if os.environ.get("MISSING") and found.has(pair, worker, name, module):
                continue
            if os.environ.get("FAILED"):
                outcomes = again(suite, environ, found.kept.get(f"{pair} {worker} {module}", {}).get(name, {}))
            else:
                outcomes = again(suite, environ, run(suite, environ, [f"t/integration/{module}.py"]))
            found.keep(pair, worker, name, module, outcomes)
            kinds = list(outcomes.values())
            print(*which, module, {kind: kinds.count(kind) for kind in set(kinds)}, flush=True)


def chosen(axis: str, rows: Any) -> list[str]:
    return (os.environ.get(axis) or ",".join(rows)).split(",")


def main() -> None:
    found = Run()
    if not os.environ.get("REPORT"):
        suite = fetch()
        UPSTREAM.prepare()
        modules = chosen("MODULES", sorted(path.stem for path in (suite / "t" / "integration").glob("test_*.py")))
        sides = chosen("SIDES", KIT if os.environ.get("KIT") else SIDES)
        # The sides of a pair and worker run at the same time, so that the machine's other load is the same for them.
        axes = product(chosen("PAIRS", PAIRS), chosen("WORKERS", WORKERS), sides)
        combinations = [(side, pair, worker) for pair, worker, side in axes if worker in SIDES[side].workers]
        with ThreadPoolExecutor(int(os.environ.get("AT_ONCE") or AT_ONCE)) as side_by_side:
            list(side_by_side.map(partial(run_combination, suite, modules, found), combinations))
    unnamed = write(found)
    sys.exit(f"{unnamed} tests end otherwise than on plain Celery, and no row says why: see the report" if unnamed else 0)


if __name__ == "__main__":
    main()
