"""The matrix: a test is a feature's row, a combination its column; the outcomes go into `reports/matrix.*`."""

import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from celery_kit.base.capabilities import Limit
from celery_kit.brokers import BROKERS
from celery_kit.profile import limits
from celery_kit.results import BACKENDS
from tests.harness.combinations import COMBINATIONS, Combination, parameters
from tests.harness.containers import require_engine
from tests.harness.groups import Grouped
from tests.integration import report
from tests.integration.containers import Running, clean, servers, versions

#: `make test-limits`: each row of the limits is taken away where it stands, and put where it does not. Every test must notice.
INVERTED = bool(os.environ.get("INVERT_LIMITS"))

#: `make test`: of each row every fourth combination, the next row one further on. Each row still meets every pool once, both
#: brokers and both backends; `make test-matrix` runs them all.
EVERY = 4 if os.environ.get("QUICK") else 1

#: What the workers of a failed cell said.
HERE = Path(__file__).parent
FAILED = Path("reports/failed")

WAIT = 15 if INVERTED else 60  # seconds; a deadline, never an expectation


@dataclass
class Cell:
    """One feature on one combination, as a test sees it.

    `mark`: a name for its files, gates and queues, which no other test has, nor an earlier try of this one.
    `limit`: the row that says it cannot be, or is different, here; None where it must simply work. A test asserts either.
    """

    feature: str
    running: Running
    app: Celery
    limit: Limit | None
    note: Callable[[str, object], None]
    noted: list[str] = field(default_factory=list)
    mark: str = ""

    def __post_init__(self) -> None:
        self.mark = f"{self.feature}-{uuid4().hex[:6]}"

    @property
    def combination(self) -> Combination:
        return self.running.combination

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Send a task by its name; gives its AsyncResult. `kwargs=` and all options of apply_async."""
        return self.app.send_task(task, args, **options)

    def run(self, task: str, *args: Any, **options: Any) -> Any:
        """Send a task and wait for its value; its error is raised."""
        return self.send(task, *args, **options).get(timeout=WAIT)

    @contextmanager
    def waiting_call(self, **options: Any) -> Iterator[tuple[Any, Callable[[], object]]]:
        """A task that has begun and waits for a byte: its result, and what sends the byte."""
        path = self.running.data / self.mark[-12:]
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            path.chmod(0o777)
            server.listen()
            server.settimeout(WAIT)
            result = self.send("time_probes.wait_for_a_byte", path.name, **options)
            waiting, _ = server.accept()
            with waiting:
                yield result, lambda: waiting.send(b"!")

    def signature(self, task: str, *args: Any, **options: Any) -> Any:
        return self.app.signature(task, args, **options)

    def saw(self, what: object) -> None:
        """Note for the report what was seen."""
        self.noted.append(str(what))
        self.note("saw", "; ".join(self.noted))


@pytest.fixture(params=parameters(COMBINATIONS), scope="session")
def combination(request: pytest.FixtureRequest) -> Combination:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def engine() -> None:
    require_engine()


@pytest.fixture(scope="session")
def running(engine: None, combination: Combination) -> Iterator[Running]:
    """This combination, its main worker consuming; the spare one is on its way."""
    servers()
    running = Running(combination)
    try:
        running.start("main")
        running.start("spare")
        running.worker("main")
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def app(running: Running) -> Iterator[Celery]:
    app = running.app()
    with app.connection_for_write():
        yield app
    app.close()


@pytest.fixture
def cell(request: pytest.FixtureRequest, running: Running, app: Celery, record_property: Any) -> Cell:
    feature = request.node.originalname.removeprefix("test_")
    limit = running.combination.limit(feature)
    if INVERTED:
        limit = None if limit else Limit("cannot", "nothing of the kind", "none")
    running.worker("main", trust=5)  # a cell that ends it costs only a few
    record_property("saw", "")
    return Cell(feature, running, app, limit, record_property)


def _feature(item: pytest.Item) -> str:
    return getattr(item, "originalname", item.name).removeprefix("test_")


def _combination(item: pytest.Item) -> Combination:
    return item.callspec.params["combination"]  # type: ignore[attr-defined, no-any-return]


def _turn(one: Combination) -> int:
    """Half of each broker's combinations come first: with all of them at once its server is the slowest part."""
    return (list(BROKERS).index(one.broker.name) + list(BACKENDS).index(one.backend.name)) % 2


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped:
    """The cells of a combination share its workers."""
    return Grouped(config, log, lambda nodeid: nodeid.rpartition("[")[2])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [item for item in items if not item.path.is_relative_to(HERE)]  # of other suites, in a run of several
    items[:] = [item for item in items if item.path.is_relative_to(HERE)]
    if INVERTED:  # the features that have a limit somewhere; a test that passes all the same is the failure here
        limited = {feature for one in COMBINATIONS for feature in limits(one.broker, one.backend, one.pool)}
        config.hook.pytest_deselected(items=[item for item in items if _feature(item) not in limited])
        items[:] = [item for item in items if _feature(item) in limited]
        for item in items:  # strict: here the failure is what is asserted, and a pass is reported as FAILED
            item.add_marker(pytest.mark.xfail(strict=True, reason="its row says the opposite of what is so"))
    rows = {name: number for number, name in enumerate(dict.fromkeys(map(_feature, items)))}
    columns = {str(one): number for number, one in enumerate(COMBINATIONS)}
    kept, skipped = [], []
    for item in items:
        one = _combination(item)
        if (rows[_feature(item)] + columns[str(one)]) % EVERY:
            skipped.append(item)
        else:
            kept.append(item)
            item.user_properties += report.describe(item, one)
    config.hook.pytest_deselected(items=skipped)
    items[:] = others + sorted(kept, key=lambda item: _turn(_combination(item)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # the process that others report to
        report.servers[:] = versions()
        clean()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Of a cell that failed, once too, keep what its workers said: reports/failed/."""
    outcome = yield
    cell = getattr(item, "funcargs", {}).get("cell")
    if outcome.failed and call.when == "call" and cell and not INVERTED:
        FAILED.mkdir(parents=True, exist_ok=True)
        text = f"{outcome.longreprtext}\n\n{cell.running.said(cell.app)}"
        (FAILED / f"{cell.feature}.{cell.running.combination}.log").write_text(text)
    return outcome


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    from tests.integration.report import collect

    if not os.environ.get("PYTEST_XDIST_WORKER"):
        collect(report)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    from tests.integration.report import write

    for line in write(Path("reports")):
        terminalreporter.write_line(line)
