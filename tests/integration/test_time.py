"""When tasks run, and for how long: delays, expiry, time limits, beat."""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from celery.exceptions import TimeoutError as ResultTimeout
from testcontainers.core.container import DockerContainer

from celery_kit.operate.stacks.images import image
from testbed.stack import SESSION
from tests.harness.combinations import COMBINATIONS
from tests.harness.containers import LABEL
from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.containers import CERTIFICATES, KEYS, MOUNTED, PROBES, Running
from tests.integration.test_control import TYPED_QUEUES

#: Neither UTC nor a whole number of hours from it.
KATHMANDU = "Asia/Kathmandu"
#: How much before its time a task may run: a worker's timer and its clock are two (5 ms were seen).
EARLY = timedelta(milliseconds=50)

#: Where Celery itself keeps to no soft time limit, and to no hard one.
NO_SOFT_ONE, NO_HARD_ONE = (
    [one for one in COMBINATIONS if kind not in one.pool.celerys_time_limits] for kind in ("soft", "hard")
)
LIMITED = "Celery leaves the limit out of account on this pool: celery_kit/pools/time_limits.py"


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def ran_at(result: Any) -> datetime:
    return datetime.fromtimestamp(result.get(timeout=WAIT), UTC)


def test_countdown(cell: Cell) -> None:
    """A task with a countdown runs that many seconds later."""
    due = in_seconds(2)
    assert ran_at(cell.send("time_probes.ran_at", countdown=2)) >= due - EARLY


@pytest.mark.by_kit(
    TYPED_QUEUES,
    "Celery 5.7.0 raises ValueError where the broker delays tasks itself; the kit rounds up to a second: fix short_delays",
)
def test_countdown_under_a_second(cell: Cell) -> None:
    """A countdown may be a fraction of a second."""
    due = in_seconds(0.5)
    assert ran_at(cell.send("time_probes.ran_at", countdown=0.5)) >= due - EARLY


def test_eta(cell: Cell) -> None:
    """A task with an ETA does not run before it, to within 50 ms."""
    eta = in_seconds(1.5)
    ran = ran_at(cell.send("time_probes.ran_at", eta=eta))
    assert ran >= eta - EARLY
    cell.saw(f"{(ran - eta).total_seconds():+.3f} s from its ETA")


def test_eta_in_the_past(cell: Cell) -> None:
    """A task whose ETA has passed runs at once."""
    cell.run("time_probes.ran_at", eta=in_seconds(-3600))


def test_eta_in_another_zone(cell: Cell) -> None:
    """An ETA may be in any time zone."""
    eta = in_seconds(1.5).astimezone(ZoneInfo(KATHMANDU))
    assert ran_at(cell.send("time_probes.ran_at", eta=eta)) >= eta - EARLY


def test_eta_without_a_zone(cell: Cell) -> None:
    """An ETA without a time zone is in UTC, whatever the sending app's own is."""
    eta = in_seconds(1.5)
    app = cell.running.app(TIMEZONE=KATHMANDU)
    assert ran_at(app.send_task("time_probes.ran_at", eta=eta.replace(tzinfo=None))) >= eta - EARLY
    app.close()


def test_eta_holds_nothing_back(cell: Cell) -> None:
    """Tasks that wait for their ETA hold back none that comes after them, however few the worker takes at once."""
    cell.running.worker("single")
    eta = in_seconds(20)
    late = [cell.send("time_probes.ran_at", eta=eta, queue="single") for _ in range(5)]
    assert ran_at(cell.send("time_probes.ran_at", queue="single")) < eta
    assert not any(one.ready() for one in late)


@pytest.mark.by_kit(
    TYPED_QUEUES,
    "the broker drops the message, and the state stays PENDING: celery_kit/brokers/rabbitmq/expired.py",
)
def test_expires(cell: Cell) -> None:
    """A task that waited in its queue beyond its expiry never runs; its state is REVOKED."""
    cell.running.worker("single")
    _outlives_its_expiry(cell, "single")


@pytest.mark.by_kit(
    [one for one in COMBINATIONS if not one.pool.has_children and one.pool.answers_while_busy],
    "Celery runs it, where a pool is handed all that its worker takes: celery_kit/pools/in_process.py",
)
def test_expires_in_its_worker(cell: Cell) -> None:
    """A task that its worker had fetched ahead, and that waited there beyond its expiry, never runs; its state is REVOKED."""
    queue = f"expires-{uuid.uuid4()}"
    with cell.running.beside("ahead", OPTIONS=f"-Q {queue} -c 1 --prefetch-multiplier 4"):
        _outlives_its_expiry(cell, queue)


def _outlives_its_expiry(cell: Cell, queue: str) -> None:
    cell.send("time_probes.nap", 2, queue=queue)
    late = cell.send("time_probes.tick", cell.mark, expires=1, queue=queue)
    in_time = cell.send("time_probes.nap", 0, expires=60, queue=queue)
    assert in_time.get(timeout=WAIT) == "slept on"
    _expired(cell, late)


def test_expires_at_a_time(cell: Cell) -> None:
    """An expiry may be a time, in any zone; a task that is due later than that never runs."""
    late = cell.send("time_probes.tick", cell.mark, expires=in_seconds(1).astimezone(ZoneInfo(KATHMANDU)), countdown=2)
    cell.run("time_probes.ran_at", expires=in_seconds(60).astimezone(ZoneInfo(KATHMANDU)))
    _expired(cell, late)


def test_expires_before_its_countdown(cell: Cell) -> None:
    """A task whose expiry comes before its countdown has passed never runs; its state is REVOKED."""
    late = cell.send("time_probes.tick", cell.mark, expires=1, countdown=2)
    _expired(cell, late)


def _expired(cell: Cell, late: Any) -> None:
    if cell.limit:
        with pytest.raises(ResultTimeout):
            late.get(timeout=1)
    else:
        with pytest.raises(TaskRevokedError, match="expired"):
            late.get(timeout=WAIT)
        assert late.state == "REVOKED"
    assert not (cell.running.data / f"ticks.{cell.mark}").exists()


def long(cell: Cell) -> float:
    """Seconds, longer than the limits here: by far where they end the task, so that a slow machine cannot be too late."""
    return 4 if cell.limit else 10


@pytest.mark.by_kit(NO_SOFT_ONE, LIMITED)
def test_soft_time_limit(cell: Cell) -> None:
    """A task catches SoftTimeLimitExceeded at its soft time limit, and can clean up."""
    _cleaned_up(cell, cell.run("time_probes.nap_with_care_and_a_limit", long(cell)))


@pytest.mark.by_kit(NO_SOFT_ONE, LIMITED)
def test_soft_time_limit_per_call(cell: Cell) -> None:
    """The sender can set the soft time limit of one call."""
    _cleaned_up(cell, cell.run("time_probes.nap_with_care", long(cell), soft_time_limit=2))


def _cleaned_up(cell: Cell, answer: str) -> None:
    assert answer == ("slept on" if cell.limit else "cleaned up")


@pytest.mark.by_kit(NO_HARD_ONE, LIMITED)
def test_hard_time_limit(cell: Cell) -> None:
    """A task is ended at its hard time limit, whatever it does at the soft one: FAILURE, TimeLimitExceeded."""
    _ended(cell, cell.send("time_probes.nap_stubbornly_with_a_limit", long(cell), queue="spare"))


@pytest.mark.by_kit(NO_HARD_ONE, LIMITED)
def test_hard_time_limit_per_call(cell: Cell) -> None:
    """The sender can set the time limits of one call."""
    _ended(cell, cell.send("time_probes.nap_stubbornly", long(cell), soft_time_limit=2, time_limit=3, queue="spare"))


@pytest.mark.by_kit(NO_HARD_ONE, LIMITED)
def test_hard_time_limit_alone(cell: Cell) -> None:
    """A hard time limit counts without a soft one; the kit sets no soft one that would hold it back."""
    _ended(cell, cell.send("time_probes.nap", long(cell), time_limit=1, queue="spare"))


def _ended(cell: Cell, result: Any) -> None:
    cell.running.worker("spare")
    answer = result.get(timeout=WAIT, propagate=False)
    if cell.limit:
        assert (result.state, answer) == ("SUCCESS", "slept on")
    else:
        assert isinstance(answer, TimeLimitExceeded), answer
        cell.saw(repr(answer))


@pytest.mark.by_kit(NO_HARD_ONE, LIMITED)
def test_hard_time_limit_of_busy_work(cell: Cell) -> None:
    """The hard time limit ends a task that computes and never yields, too."""
    cell.running.worker("spare")
    file = cell.running.data / str(uuid.uuid4())
    # No soft limit: on a slow machine it could be over before the task's first line, which is not what is asked here.
    result = cell.send("time_probes.burn", 2 if cell.limit else 20, file.name, time_limit=1, queue="spare")
    answer = result.get(timeout=WAIT, propagate=False)
    cell.saw(repr(answer))
    if cell.limit:
        assert file.exists()
    else:
        assert isinstance(answer, TimeLimitExceeded), answer
        assert not file.exists()


@pytest.mark.by_kit(NO_HARD_ONE, LIMITED)
def test_hard_time_limit_of_a_waiting_call(cell: Cell) -> None:
    """The hard time limit ends a task in the middle of a call that waits: here for a byte that never comes."""
    cell.running.worker("spare")
    with cell.waiting_call(time_limit=1, queue="spare") as (result, end):
        if cell.limit:
            cell.run("probes.add", 1, 2, countdown=3)  # by then its time is over
            assert not result.ready()
            end()
        answer = result.get(timeout=WAIT, propagate=False)
    cell.saw(repr(answer))
    assert isinstance(answer, TimeLimitExceeded), answer


@dataclass
class Beat:
    """A beat with the timetable of `time_probes`, and what it made happen."""

    running: Running
    container: Any

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait; a failure shows what beat said."""
        try:
            until(what, condition)
        except AssertionError as error:
            raise AssertionError(f"{error}; beat said:\n{self.container.logs(tail=40).decode()}") from None

    def ticks(self, name: str) -> int:
        """How often the task of an entry ran."""
        file = self.running.data / f"ticks.{name}"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def starts_again(self) -> None:
        """Start it once more, and wait until it sends: a stop in the middle of connecting may take its grace."""
        before = self.container.logs().count(b"beat: Starting...")
        self.container.start()
        self.until("it has begun", lambda: self.container.logs().count(b"beat: Starting...") > before)
        self.until("it sends", lambda: self.container.logs().rpartition(b"beat: Starting...")[2].count(b"Sending due") > 4)
        self.goes_on()

    def goes_on(self) -> None:
        """Wait for two more ticks."""
        now = self.ticks("interval")
        self.until("two more ticks", lambda: self.ticks("interval") >= now + 2)

    def stop(self) -> dict[str, tuple[int, str]]:
        """Stop it as its stack does; gives each entry's run count and last run, as it has kept them."""
        self.container.stop(timeout=20)
        assert self.container.wait()["StatusCode"] == 0, self.container.logs(tail=40).decode()
        look = (
            "import json; kept = json.load(open('/data/celerybeat-schedule.json'))['entries']; "
            "print(json.dumps({name: (one['total_run_count'], one['last_run_at']) for name, one in kept.items()}))"
        )
        answer = self.running.worker("main").docker.exec_run(["python", "-c", look], stderr=False)
        return dict(json.loads(answer.output))


@pytest.fixture(scope="module")
def beat(running: Running) -> Iterator[Beat]:
    running.worker("main")
    environ = dict(running.workers["main"].container.env)
    container = (
        DockerContainer(image(running.combination.pool.name))
        .with_envs(**environ, TIMEZONE=KATHMANDU, PROBE_TIMETABLE="1")
        .with_env("HEARTBEAT_FILE", "/data/heartbeat.beat")
        .with_volume_mapping(str(running.data), "/data", "rw")
        .with_volume_mapping(str(KEYS), str(MOUNTED), "ro")
        .with_volume_mapping(*CERTIFICATES)
        .with_volume_mapping(str(PROBES / "time_probes.py"), "/srv/app/tasks/time_probes.py", "ro")
        .with_kwargs(network=running.stack.network, labels={LABEL: SESSION})
        .with_command(["celery", "-A", "app", "beat", "--loglevel", "INFO"])
        .start()
        .get_wrapped_container()
    )
    yield Beat(running, container)
    container.remove(force=True, v=True)


def test_beat_interval(cell: Cell, beat: Beat) -> None:
    """Beat sends a task again and again, at its interval."""
    beat.until("a third tick", lambda: beat.ticks("interval") >= 3)


def test_beat_entry_has_options(cell: Cell, beat: Beat) -> None:
    """An entry of beat's carries options of its own, such as the queue."""
    cell.running.worker("spare")
    beat.until("a tick", lambda: beat.ticks("routed") >= 1)
    assert "time_probes.tick" in cell.running.worker("spare").logs()


def test_beat_crontab_is_in_its_time_zone(cell: Cell, beat: Beat) -> None:
    """Beat reads a crontab in its own time zone, here one that is 5:45 h from UTC, and makes up for a run that it missed."""
    sent = 0 if cell.limit else 1
    beat.until("the crontab's tick", lambda: beat.ticks("here") == sent)
    beat.goes_on()
    assert beat.ticks("here") == sent
    assert cell.limit or not beat.ticks("elsewhere")  # where the row is limited, that depends on the time of day


def test_beat_restart_keeps_its_schedule(cell: Cell, beat: Beat) -> None:
    """A beat that starts again goes on with its schedule: nothing is sent twice, and its counts go on."""
    beat.until("the hourly tick", lambda: beat.ticks("hourly") == 1)
    before = beat.stop()
    beat.starts_again()
    after = beat.stop()
    assert beat.ticks("hourly") == 1
    assert after["hourly"] == before["hourly"] and after["hourly"][0] == 1
    assert after["interval"][0] > before["interval"][0]
    cell.saw({"before": before, "after": after})
