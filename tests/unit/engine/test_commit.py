"""Results are stored before their acknowledgements are sent, in groups; each rule that ends a group, one by one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery import Celery
from celery.app.task import Context
from celery.app.trace import fast_trace_task

from celery_kit.engine import commit, commit_child, commit_worker
from celery_kit.engine.commit import COUNT, Commit, Write
from celery_kit.pools.interrupt import Interrupt, watch
from celery_kit.pools.time_limits import Late
from tests.harness.waiting import until

#: What a child gets of a task beside its name and id: its request, and its body with its content type and encoding.
REST: tuple[dict[str, Any], bytes, str, str] = ({}, b"", "application/json", "utf-8")


class Server:
    """A store and a broker in one list, in the order of what reached them. `away`: what it raises."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.away: Exception | None = None
        self.tries = 0

    def store(self, writes: list[Write]) -> None:
        self.tries += 1
        if self.away:
            raise self.away
        self.seen.append("+".join(f"{write.task_id}:{write.state}" for write in writes))

    def ack(self, name: str) -> Callable[[], None]:
        return lambda: self.seen.append(f"ack {name}")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The worker's unfinished tasks; one to begin with. Groups grow old after a minute, unless a test says otherwise."""
    monkeypatch.setattr(commit, "SECONDS", 60.0)
    monkeypatch.setattr(commit, "AGE", 60.0)
    monkeypatch.setattr(commit, "RETRY_PAUSE", 0.01)
    yield {"another task"}


@pytest.fixture
def group(server: Server, busy: set[str]) -> Commit:
    group = Commit()
    group.start(server.store, busy.__len__)
    return group


def write(name: str, state: str = "SUCCESS", size: int = 1) -> Write:
    return Write(name, "x" * size, 0, state)


def end(group: Commit, server: Server, *names: str) -> None:
    """What a task does at its end."""
    for name in names:
        group.result(write(name))
        group.ack(server.ack(name))


def test_nothing_is_written_before_a_group_ends(group: Commit, server: Server) -> None:
    end(group, server, *(str(n) for n in range(COUNT - 1)))
    assert server.seen == []


def test_a_full_group_is_written_results_first(group: Commit, server: Server) -> None:
    names = [str(n) for n in range(COUNT)]
    end(group, server, *names)
    assert server.seen == ["+".join(f"{name}:SUCCESS" for name in names), *(f"ack {name}" for name in names)]


def test_a_place_that_is_free_before_its_acknowledgement_goes_is_told_of(server: Server, busy: set[str]) -> None:
    told: list[int] = []
    group = Commit()
    group.start(server.store, busy.__len__, more=lambda: told.append(group.done))
    end(group, server, "a", "b")
    assert (told, server.seen) == ([1, 2], [])
    busy.clear()
    end(group, server, "c")  # the acknowledgements tell
    assert told == [1, 2]


def test_what_waits_in_the_transport_keeps_a_group_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has taken messages ahead: it is busy with them, although no task runs at the moment."""
    monkeypatch.setattr(commit_worker, "commit", started := MagicMock())
    channel = SimpleNamespace(prefetched=["a message"], refill=MagicMock())
    parent: Any = SimpleNamespace(
        app=MagicMock(), hub=None, pool=SimpleNamespace(uses_semaphore=False), task_consumer=SimpleNamespace(channel=channel)
    )
    commit_worker.Step.start(MagicMock(), parent)
    _, busy = started.start.call_args.args
    assert busy() == 1
    started.start.call_args.kwargs["more"]()
    assert channel.refill.called
    for other in (None, SimpleNamespace(channel=object())):  # before it consumes; on a transport of kombu's
        parent.task_consumer = other
        assert busy() == 0
        started.start.call_args.kwargs["more"]()


def test_the_last_task_of_a_worker_does_not_wait(group: Commit, server: Server, busy: set[str]) -> None:
    end(group, server, "a")
    busy.clear()
    end(group, server, "b")
    assert server.seen == ["a:SUCCESS+b:SUCCESS", "ack a", "ack b"]


def test_who_ends_late_writes_for_who_has_ended_before(group: Commit, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended and waits runs again if the worker is killed."""
    end(group, server, "a")
    group.result(write("c", "STARTED"))
    assert server.seen == []
    monkeypatch.setattr(commit, "AGE", 0.0)
    end(group, server, "b")
    assert server.seen == ["a:SUCCESS+c:STARTED+b:SUCCESS", "ack a", "ack b"]


def test_an_old_group_is_written_while_a_task_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "SECONDS", 0.05)
    group = Commit()
    group.start(server.store, lambda: True)
    end(group, server, "a")
    until("the group is written", lambda: server.seen == ["a:SUCCESS", "ack a"], 10)
    end(group, server, "b")
    until("the next one, too", lambda: server.seen[2:] == ["b:SUCCESS", "ack b"], 10)


def test_large_results_are_not_gathered(group: Commit, server: Server) -> None:
    group.result(write("a", size=commit.BYTES // 2))
    assert server.seen == []
    group.result(write("b", size=commit.BYTES // 2))
    assert server.seen == ["a:SUCCESS+b:SUCCESS"]


def test_a_pool_that_runs_its_tasks_in_the_loop_writes_at_the_next_tick(group: Commit, server: Server, busy: set[str]) -> None:
    """Such a worker never has a second task in its hands: by the rule of the last task each would be a group of its own."""
    group.tick()
    busy.clear()
    end(group, server, "a", "b")
    assert server.seen == []
    group.tick()
    assert server.seen == ["a:SUCCESS+b:SUCCESS", "ack a", "ack b"]


def test_the_loop_leaves_other_threads_groups_alone(group: Commit, server: Server) -> None:
    thread = threading.Thread(target=end, args=(group, server, "a"))
    thread.start()
    thread.join()
    group.tick()
    assert server.seen == []


def test_a_worker_that_stops_writes_at_once(group: Commit, server: Server) -> None:
    end(group, server, "a")
    group.stop()
    assert server.seen == ["a:SUCCESS", "ack a"]
    end(group, server, "b")
    assert server.seen[2:] == ["b:SUCCESS", "ack b"]


def test_an_acknowledgement_waits_for_its_results_server_and_tasks_go_on(
    server: Server, busy: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "SECONDS", 0.01)
    group = Commit()
    group.start(server.store, busy.__len__)
    server.away = ConnectionError("away")
    end(group, server, *(str(n) for n in range(COUNT + 3)))
    until("it is tried again", lambda: server.tries > 3, 10)
    assert server.seen == []
    server.away = None
    until("all are acknowledged", lambda: len([what for what in server.seen if what.startswith("ack")]) == COUNT + 3, 10)
    assert server.seen[0] == "+".join(f"{n}:SUCCESS" for n in range(COUNT + 3))


def test_flush_tells_that_the_results_server_is_away_and_keeps_the_group(group: Commit, server: Server) -> None:
    server.away = ConnectionError("away")
    end(group, server, "a")
    with pytest.raises(ConnectionError):
        group.flush()
    server.away = None
    group.flush()
    assert server.seen == ["a:SUCCESS", "ack a"]


def test_acknowledgements_are_announced_after_their_results_are_stored(group: Commit, server: Server) -> None:
    """A signature that counted as used before its task's result is stored would lose the task, if the worker was killed."""
    group.announce = lambda acks: server.seen.append(f"{len(acks)} announced")
    end(group, server, "1", "2")
    server.away = ConnectionError("gone")
    with pytest.raises(ConnectionError):
        group.flush()
    assert not server.seen
    server.away = None
    group.flush()
    assert server.seen == ["1:SUCCESS+2:SUCCESS", "2 announced", "ack 1", "ack 2"]


def test_a_later_state_takes_the_place_of_an_earlier_one(group: Commit, server: Server) -> None:
    for state in ("STARTED", "SUCCESS", "STARTED"):
        group.result(write("a", state))
    group.flush()
    assert server.seen == ["a:SUCCESS"]


def test_a_retry_that_has_ended_is_not_said_to_be_still_to_come(group: Commit, server: Server) -> None:
    for state in ("STARTED", "FAILURE", "RETRY"):
        group.result(write("a", state))
    group.flush()
    assert server.seen == ["a:FAILURE"]


def test_a_group_that_could_not_be_written_takes_later_states_too(group: Commit, server: Server) -> None:
    server.away = ConnectionError("away")
    group.result(write("a", "STARTED"))
    group.result(write("b"))
    with pytest.raises(ConnectionError):
        group.flush()
    server.away = None
    group.result(write("a"))
    group.result(write("b", "STARTED"))
    group.flush()
    assert server.seen == ["a:SUCCESS+b:SUCCESS"]


def test_states_that_come_while_a_write_fails_take_their_place(server: Server, busy: set[str]) -> None:
    def fail_once(writes: list[Write]) -> None:
        if not server.tries:
            server.tries += 1
            one.result(write("a"))
            one.result(write("b", "STARTED"))
            raise ConnectionError("away")
        server.store(writes)

    one = Commit()
    one.start(fail_once, busy.__len__)
    one.result(write("a", "STARTED"))
    one.result(write("b"))
    with pytest.raises(ConnectionError):
        one.flush()
    one.flush()
    assert server.seen == ["a:SUCCESS+b:SUCCESS"]


def test_no_acknowledgement_overtakes_a_result_that_is_being_written(server: Server, busy: set[str]) -> None:
    """The group of one thread is on its way; another thread's flush waits for it."""
    begun, go_on = threading.Event(), threading.Event()

    def slowly(writes: list[Write]) -> None:
        begun.set()
        assert go_on.wait(10)
        server.store(writes)

    group = Commit()
    group.start(slowly, busy.__len__)
    group.result(write("a"))
    first = threading.Thread(target=group.flush)
    first.start()
    assert begun.wait(10)
    group.ack(server.ack("a"))
    second = threading.Thread(target=group.flush)
    second.start()
    assert server.seen == []
    go_on.set()
    first.join()
    second.join()
    assert server.seen == ["a:SUCCESS", "ack a"]


def test_one_failing_acknowledgement_does_not_stop_the_others(group: Commit, server: Server) -> None:
    def fail() -> None:
        raise ConnectionError("gone")

    group.ack(fail)
    group.ack(server.ack("b"))
    group.flush()
    assert server.seen == ["ack b"]


def test_what_strikes_in_the_midst_of_an_acknowledgement_stops_no_other(group: Commit, server: Server) -> None:
    """A loop over what belongs to many tasks goes on to its end, whatever is raised in one of them, and is no Exception."""
    strikes, sent = [SystemExit("of the task that runs here")], server.ack("all")

    def struck() -> None:
        assert group.defer(sent)
        if strikes:
            raise strikes.pop()
        server.ack("a")()

    group.result(write("a"))
    group.ack(struck)
    group.ack(server.ack("b"))
    with pytest.raises(SystemExit):
        group.flush()
    assert server.seen == ["a:SUCCESS", "ack b", "ack a", "ack all"]
    end(group, server, "c")
    group.flush()
    assert server.seen[4:] == ["c:SUCCESS", "ack c"]


@pytest.mark.parametrize("place", [threading.main_thread, threading.Thread])
def test_no_time_limit_strikes_while_a_thread_writes_for_others(server: Server, busy: set[str], place: Any) -> None:
    """A late task's own thread may have others' results and acknowledgements in its hands: it works them off first."""
    begun, go_on, found = threading.Event(), threading.Event(), list[str]()

    def slowly(writes: list[Write]) -> None:
        begun.set()
        assert go_on.wait(30)
        server.store(writes)

    def late() -> None:
        with suppress(Late), Interrupt(0.0, Late()):
            mine.result(write("a"))
            mine.ack(server.ack("a"))
            mine.flush()
            found.append("is written")
            while True:
                threading.Event().wait(0.01)  # a step of the task

    mine = Commit()
    mine.start(slowly, busy.__len__)

    def look() -> None:
        assert begun.wait(30)
        (one,) = watch.running
        for _ in range(3):
            watch._strike(one)
        assert one.pending
        go_on.set()

    looks = threading.Thread(target=look)
    looks.start()
    if place is threading.main_thread:
        late()
    else:
        thread = threading.Thread(target=late)
        thread.start()
        thread.join()
    looks.join()
    assert (found, server.seen) == (["is written"], ["a:SUCCESS", "ack a"])


def test_a_transport_is_called_once_after_a_groups_acknowledgements(group: Commit, server: Server) -> None:
    sent = server.ack("all")
    for _ in range(2):
        group.ack(lambda: server.seen.append(str(group.defer(sent))))
    group.flush()
    assert server.seen == ["True", "True", "ack all"]
    assert not group.defer(sent)


def request(server: Server, late: bool = True) -> Any:
    """A task's request as the worker has it, as far as its message's end goes."""
    request: Any = commit_worker.Request.__new__(commit_worker.Request)
    request._on_ack = lambda *_: server.ack("1")()
    request._on_reject = lambda *_: server.seen.append("reject 1")
    request._connection_errors, request._eventer = (), None
    request._task = SimpleNamespace(acks_late=late)
    return request


@pytest.fixture
def working(group: Commit, monkeypatch: pytest.MonkeyPatch) -> Commit:
    monkeypatch.setattr(commit_worker, "commit", group)
    return group


def test_a_late_acknowledgement_waits_for_its_group_and_comes_once(working: Commit, server: Server) -> None:
    one = request(server)
    one.acknowledge()
    one.acknowledge()
    assert server.seen == []
    working.flush()
    one.acknowledge()
    assert server.seen == ["ack 1"]


def test_an_early_acknowledgement_waits_for_nothing(working: Commit, server: Server) -> None:
    """It comes before the task runs, so that no crash makes it run again."""
    request(server, late=False).acknowledge()
    assert server.seen == ["ack 1"]


def test_a_rejected_tasks_states_are_written_before_it_begins_elsewhere(working: Commit, server: Server) -> None:
    working.result(write("1", "STARTED"))
    request(server).reject(requeue=True)
    assert server.seen == ["1:STARTED", "reject 1"]


@pytest.mark.parametrize(
    ("waits", "state", "request_"),
    [
        (True, "SUCCESS", {}),
        (True, "STARTED", {}),
        (True, "STARTED", {"chord": {"task": "body"}}),
        (False, "SUCCESS", {"chord": {"task": "body"}}),
        (False, "RETRY", {}),
        (False, "FAILURE", {}),
        (False, "PROGRESS", {}),
        (False, "SUCCESS", {"is_eager": True}),
        (False, "SUCCESS", {"id": "of another task"}),
        (False, "SUCCESS", {"task": "not.here"}),
        (False, "SUCCESS", {"task": "early"}),
        (False, "SUCCESS", {"task": "own"}),
    ],
)
def test_only_what_is_acknowledged_with_the_group_waits_for_it(
    group: Commit, waits: bool, state: str, request_: dict[str, Any]
) -> None:
    def run() -> None: ...

    app = Celery("tasks", set_as_current=False)
    for name, late, request in (
        ("late", True, commit.REQUEST),
        ("early", False, commit.REQUEST),
        ("own", True, "celery.worker.request:Request"),
    ):
        app.task(name=name, acks_late=late, Request=request, shared=False)(run)
    context: Any = Context({"id": "1", "task": "late", "is_eager": False, **request_})
    assert group.takes(app, "1", state, context) is waits
    assert not group.takes(app, "1", state, None)
    group.stop()
    assert not group.takes(app, "1", state, context)


def test_a_child_process_has_written_all_when_its_parent_hears_of_the_end(
    group: Commit, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the STARTED of a task that was rejected would take the place of what its parent says of it."""

    def rejected(*_: Any, **__: Any) -> tuple[int, str, float]:
        group.result(write("a", "STARTED"))
        return 0, "", 0.0

    monkeypatch.setattr(commit_child, "commit", group)
    monkeypatch.setattr(commit_child, "fast_trace_task", rejected)
    assert commit_child.run("probes.rejects", "a", *REST) == (0, "", 0.0)
    assert server.seen == ["a:STARTED"]


LARGE = commit.CARRIED + 1


@pytest.mark.parametrize(
    ("run", "size", "away", "stored"),
    [
        (commit_child.run, 1, False, False),
        (commit_child.run, LARGE, False, True),
        (commit_child.run_alone, 1, False, True),
        (commit_child.run, LARGE, True, False),
        (commit_child.run_alone, 1, True, False),
    ],
    ids=["with others", "large", "alone", "large, and the server is away", "alone, and the server is away"],
)
def test_a_child_process_stores_a_success_or_hands_it_to_its_parent(
    group: Commit, server: Server, monkeypatch: pytest.MonkeyPatch, run: Any, size: int, away: bool, stored: bool
) -> None:
    """What is not stored is not acknowledged: the parent, which acknowledges, has it then, and not a child that may end."""
    server.away = OSError("away") if away else None
    group.child = True

    def succeeds(*_: Any, **__: Any) -> tuple[int, str, float]:
        group.result(write("a", "STARTED"))
        group.result(write("a", size=size))
        return 0, "shown", 0.1

    monkeypatch.setattr(commit_child, "commit", group)
    monkeypatch.setattr(commit_child, "fast_trace_task", succeeds)
    failed, shown, runtime = run("probes.echo", "a", *REST)
    assert (failed, shown, runtime) == (0, "shown", 0.1)
    assert server.seen == (["a:SUCCESS"] if stored else [])
    assert isinstance(shown, commit_child.Carried) is not stored
    assert stored or shown.write == write("a", size=size)
    server.away = None
    group.flush()
    assert server.seen == (["a:SUCCESS"] if stored else []), "it is in one place only"


def test_a_child_process_hands_over_its_own_tasks_success_alone(group: Commit, server: Server) -> None:
    """A result goes to the parent under its task's own name, or not at all: then it is stored here."""
    group.child = True
    group.result(write("a"))
    assert group.hand_over("b") is None
    group.end()
    assert server.seen == ["a:SUCCESS"]


def test_a_parent_takes_what_is_carried_for_the_task_that_it_asked_for_alone(
    group: Commit, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that came back with another task's end is neither stored nor acknowledged as that one's."""
    monkeypatch.setattr(commit_child, "commit", group)
    done: list[Any] = []
    apply = partial(commit_child.carry, lambda *_, callback, **__: done.append(callback))
    request = SimpleNamespace(id="a", task=SimpleNamespace(acks_late=True, Request=commit.REQUEST))
    request.on_success = MagicMock(__self__=request)
    apply(fast_trace_task, (), callback=request.on_success)
    with pytest.raises(RuntimeError, match="task b was carried as that of task a"):
        done[0]((0, commit_child._carried("shown", *write("b")), 0.1))
    assert not request.on_success.called
    group.flush()
    assert server.seen == []


@pytest.mark.parametrize("look", ["before_read", "flush", "before_raw_read"])
def test_a_child_process_stores_its_success_before_somebody_looks(group: Commit, server: Server, look: str) -> None:
    """What this process has said is stored before it reads."""
    group.child = True
    group.result(write("a"))
    assert server.seen == []
    getattr(group, look)(*([["a"]] if look == "before_read" else []))
    assert server.seen == ["a:SUCCESS"]
    assert group.hand_over("a") is None


def test_a_child_process_hands_over_nothing_that_is_being_stored(server: Server, busy: set[str]) -> None:
    """Its parent would acknowledge the task, and the store may fail."""
    begun, go_on, handed = threading.Event(), threading.Event(), list[Write | None]()

    def fails(_: list[Write]) -> None:
        begun.set()
        assert go_on.wait(10)
        raise ConnectionError("away")

    group = Commit()
    group.start(fails, busy.__len__)
    group.child = True
    group.result(write("a"))
    stores = threading.Thread(target=group.try_flush)
    ends = threading.Thread(target=lambda: handed.append(group.hand_over("a")))
    stores.start()
    assert begun.wait(10)
    ends.start()
    assert not handed
    go_on.set()
    for thread in (stores, ends):
        thread.join()
    assert handed == [write("a")]


def test_a_child_process_stores_what_it_handed_over_when_it_looks_for_that(group: Commit, server: Server) -> None:
    """Its parent may have it still; what a client has had, and forgotten, is not stored again by a look at something else."""
    group.child = True
    for name in ("a", "b"):
        group.result(write(name))
        assert group.hand_over(name) == write(name)
    group.before_read(["a", "c"])
    assert server.seen == ["a:SUCCESS"]


def test_the_first_success_is_the_one_that_stays(group: Commit, server: Server) -> None:
    """What comes after a task's success does not take its place while that is held back."""
    group.child = True
    group.result(write("a"))
    group.store(write("a", "FAILURE"))
    assert server.seen == ["a:SUCCESS"]


@pytest.mark.parametrize("lacks", ["is_eager", "chord", "task"])
def test_a_state_whose_request_is_somebody_elses_is_stored_at_once(group: Commit, lacks: str) -> None:
    """celery-batches, say, hands the backend a request of its own: it has what Celery's backends look at, and no more."""
    request: Any = SimpleNamespace(id="1", is_eager=False, chord=None, task="late")
    delattr(request, lacks)
    assert not group.takes(Celery("tasks", set_as_current=False), "1", "SUCCESS", request)


@pytest.mark.parametrize(("tasks", "target"), [({"a"}, commit_child.run_alone), ({"a", "b"}, commit_child.run)])
def test_a_task_whose_result_others_go_with_brings_it_to_the_parent(
    server: Server, monkeypatch: pytest.MonkeyPatch, tasks: set[str], target: Any
) -> None:
    """One that is alone is stored where it is made: its result is there sooner."""
    group, sent = Commit(), list[Any]()
    group.start(server.store, tasks.__len__)
    monkeypatch.setattr(commit_child, "commit", group)
    apply = partial(commit_child.carry, lambda target, *_, **__: sent.append(target))
    request = SimpleNamespace(task=SimpleNamespace(acks_late=True, Request=commit.REQUEST))
    request.on_success = MagicMock(__self__=request)
    apply(fast_trace_task, (), callback=request.on_success)
    assert sent == [target]


def test_a_group_that_another_thread_writes_meanwhile_does_not_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Commit()
    one._lazy = one._in_loop = True
    one._since = 0.0

    def written() -> float:
        one._since = None
        return 0.0

    monkeypatch.setattr(commit, "time", SimpleNamespace(monotonic=written))
    one.tick()
    assert one._since is None
