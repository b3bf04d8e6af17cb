"""Celery's own integration suite, against the brokers as our stacks start them and against plain ones, side by side.

`make test-upstream` fetches the suite from the package index (it is never kept in this repository), runs each of its modules in
a process of its own, and writes docs/reports/upstream.md. PAIRS and MODULES choose some, by name.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import docker
from dotenv import dotenv_values

from app.stack import ROOT
from tests.integration.bench import LABEL, SESSION, Stack
from tests.wait import until

HOME = ROOT / ".kit" / "upstream"
REPORT = ROOT / "docs" / "reports" / "upstream.md"
CELERY = version("celery")
MODULE_SECONDS = 1_800
#: Broker and result backend, as the suite's environment names them: host and port of each come from the servers.
PAIRS = {
    "rabbitmq+redis": ("pyamqp://kit:kit@127.0.0.1:{rabbitmq}/kit", "redis://127.0.0.1:{redis}"),
    "redis+redis": ("redis://127.0.0.1:{redis}", "redis://127.0.0.1:{redis}"),
    "rabbitmq+rpc": ("pyamqp://kit:kit@127.0.0.1:{rabbitmq}/kit", "rpc"),
}


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


def environment() -> Path:
    """An interpreter with the suite's requirements, hash-pinned."""
    python = HOME / "venv" / "bin" / "python"
    lock = Path(__file__).with_name("requirements.txt")
    if not (HOME / "venv" / lock.name).exists() or (HOME / "venv" / lock.name).read_text() != lock.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME / "venv")], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", lock], check=True)
        (HOME / "venv" / lock.name).write_text(lock.read_text())
    return python


@contextmanager
def as_our_stack() -> Iterator[dict[str, int]]:
    """The servers of compose.rabbitmq.yaml."""
    stack = Stack("rabbitmq")
    try:
        stack.start()
        stack.wait()
        yield {"rabbitmq": stack.port(5672), "redis": stack.port(6379, stack.results)}
    finally:
        stack.run("down", "--volumes", "--timeout", "1")


@contextmanager
def plain() -> Iterator[dict[str, int]]:
    """The same images without a line of configuration of ours."""
    client, images = docker.from_env(), {**dotenv_values(ROOT / ".env"), **os.environ}
    account = {f"RABBITMQ_DEFAULT_{part}": "kit" for part in ("USER", "PASS", "VHOST")}
    wanted = {
        "rabbitmq": (images.get("RABBITMQ_IMAGE") or "rabbitmq:4-management", 5672, account),
        "redis": (images.get("REDIS_IMAGE") or "redis:8", 6379, {}),
    }
    probes = {"rabbitmq": "gosu rabbitmq rabbitmq-diagnostics -q check_port_connectivity", "redis": "redis-cli ping"}
    with ExitStack() as started:
        ports = {}
        for name, (image, port, environ) in wanted.items():
            container = client.containers.run(
                image, detach=True, environment=environ, labels={LABEL: SESSION}, ports={f"{port}/tcp": ("127.0.0.1", None)}
            )
            started.callback(container.remove, force=True, v=True)
            container.reload()
            until(f"plain {name} starts", lambda c=container: c.status == "running", 30)  # type: ignore[misc]
            until(f"plain {name} answers", lambda c=container, n=name: c.exec_run(probes[n]).exit_code == 0, 120)  # type: ignore[misc]
            container.reload()
            ports[name] = int(container.ports[f"{port}/tcp"][0]["HostPort"])
        yield ports


def run(suite: Path, python: Path, module: str, pair: str, ports: dict[str, int]) -> dict[str, str]:
    """Run one module against one pair; gives each test's outcome."""
    broker, backend = (address.format(**ports) for address in PAIRS[pair])
    results = HOME / f"results-{ports['redis']}.xml"
    results.unlink(missing_ok=True)
    environ = {
        **os.environ,
        "TEST_BROKER": broker,
        "TEST_BACKEND": backend,
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(ports["redis"]),
        "WORKER_LOGLEVEL": "INFO",
    }
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={results}",
        f"t/integration/{module}.py",
    ]
    try:
        subprocess.run(command, cwd=suite, env=environ, capture_output=True, timeout=MODULE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {f"{module} as a whole": f"no end within {MODULE_SECONDS} s"}
    if not results.exists():
        return {f"{module} as a whole": "did not start"}
    outcomes = {}
    for case in ElementTree.parse(results).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcomes[f"{case.get('classname')}.{case.get('name')}"] = next(iter(kinds), "passed")
    return outcomes


def main() -> None:
    suite, python = fetch(), environment()
    pairs = (os.environ.get("PAIRS") or ",".join(PAIRS)).split(",")
    found = sorted(path.stem for path in (suite / "t" / "integration").glob("test_*.py"))
    modules = (os.environ.get("MODULES") or ",".join(found)).split(",")
    rows, differing = [], []
    with as_our_stack() as ours, plain() as theirs:
        for pair in pairs:
            for module in modules:
                with ThreadPoolExecutor() as side_by_side:
                    here, there = side_by_side.map(partial(run, suite, python, module, pair), (ours, theirs))
                counts = [
                    ", ".join(f"{list(one.values()).count(kind)} {kind}" for kind in sorted(set(one.values()))) or "no test"
                    for one in (here, there)
                ]
                rows.append(f"| {pair} | {module} | {counts[0]} | {counts[1]} |")
                print(rows[-1], flush=True)
                differing += [
                    f"- {pair}, {test}: {here.get(test, 'not run')} on ours, {there.get(test, 'not run')} on plain"
                    for test in sorted(here.keys() | there.keys())
                    if here.get(test) != there.get(test)
                ]
    chosen = (
        ""
        if not os.environ.get("PAIRS") and not os.environ.get("MODULES")
        else f", PAIRS={','.join(pairs)}, {len(modules)} modules"
    )
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(
        "# Celery's own integration suite on our brokers\n\n"
        f"Celery {CELERY}, kombu {version('kombu')}, redis-py {version('redis')}; `make test-upstream`{chosen}, "
        f"{datetime.now(UTC):%Y-%m-%d}. The servers as compose.rabbitmq.yaml starts them, beside the same images without "
        "configuration; a process a module.\n\n"
        "| broker + backend | module | on our stack | on plain brokers |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n\n## Tests that ended differently\n\n"
        + ("\n".join(differing) or "None.")
        + "\n"
    )
    lost = [line for line in differing if line.endswith("passed on plain")]
    sys.exit(f"{len(lost)} tests pass on plain brokers only: see {REPORT.relative_to(ROOT)}" if lost else 0)


if __name__ == "__main__":
    main()
