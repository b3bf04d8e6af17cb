"""The way of a task: sent in every manner, seen in every state, its value or its error brought back."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import ResultSet
from kombu.utils.uuid import uuid

from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.containers import PROBES


def _known_to_the_producer(name: str) -> Any:
    """The probes' module under the name that it has in a worker, as in a code base that producer and worker share."""
    spec = spec_from_file_location(f"app.tasks.{name}", PROBES / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flow_probes = _known_to_the_producer("flow_probes")


def test_delay(cell: Cell) -> None:
    """A task that the producer knows is sent by its delay()."""
    result = cell.app.tasks["flow_probes.add"].delay(2, y=3)
    assert result.get(timeout=WAIT) == 5


def test_apply_async(cell: Cell) -> None:
    """apply_async takes arguments, keyword arguments and an id of the sender's own."""
    task_id = f"mine-{uuid()}"
    result = cell.app.tasks["flow_probes.add"].apply_async((2,), {"y": 4}, task_id=task_id)
    assert (result.id, result.get(timeout=WAIT)) == (task_id, 6)


def test_send_by_name(cell: Cell) -> None:
    """A task is sent by its name; the producer needs none of its code."""
    stranger = "probes.add"
    assert stranger not in cell.app.tasks
    assert cell.app.send_task(stranger, (2, 5)).get(timeout=WAIT) == 7


def test_bulk(cell: Cell) -> None:
    """1,000 tasks over one connection: every result comes back, and is its own."""
    with cell.app.producer_or_acquire() as producer:
        sent = ResultSet([cell.send("flow_probes.add", n, n, producer=producer) for n in range(1_000)], app=cell.app)
    assert sent.get(timeout=3 * WAIT) == [2 * n for n in range(1_000)]


def test_every_state(cell: Cell) -> None:
    """A task is PENDING, STARTED and SUCCESS in turn, as its sender sees it."""
    app = cell.running.app()
    gate = f"gate-{uuid()}"
    with app.connection_for_write():
        assert app.AsyncResult("of no task").state == "PENDING"  # the next answer does not wait for a connection
        result = app.send_task("flow_probes.pass_the_gate", (gate,), countdown=2)
        assert result.state == "PENDING"
        until("the task is STARTED", lambda: result.state == "STARTED")
        (cell.running.data / gate).touch()
        until("the task is done", lambda: result.state != "STARTED")
        assert (result.state, result.result) == ("SUCCESS", "through")
    app.close()


def test_get_times_out(cell: Cell) -> None:
    """get() with a timeout raises TimeoutError while the task runs; a later get() has the value."""
    gate = f"gate-{uuid()}"
    result = cell.send("flow_probes.pass_the_gate", gate)
    until("the task runs", (cell.running.data / f"{gate}.reached").exists)
    with pytest.raises(ResultTimeout):
        result.get(timeout=0.2)
    (cell.running.data / gate).touch()
    assert result.get(timeout=WAIT) == "through"


def test_error_is_raised(cell: Cell) -> None:
    """get() raises what the task raised."""
    with pytest.raises(flow_probes.OddNumberError, match="odd"):
        cell.run("flow_probes.refuse_odd", 1)


def test_error_as_value(cell: Cell) -> None:
    """With propagate=False, get() gives the error back and raises nothing."""
    result = cell.send("flow_probes.refuse_odd", 3)
    error = result.get(timeout=WAIT, propagate=False)
    assert (result.state, repr(error)) == ("FAILURE", "OddNumberError(3, 'odd')")


def test_own_exception_class(cell: Cell) -> None:
    """An error of the user's own class arrives as that class, with its arguments and attributes."""
    result = cell.send("flow_probes.refuse_odd", 5)
    error = result.get(timeout=WAIT, propagate=False)
    assert type(error) is flow_probes.OddNumberError
    assert (error.args, error.number) == ((5, "odd"), 5)


def test_unknown_exception_class(cell: Cell) -> None:
    """A producer that lacks an error's class gets one of the same name, made on the spot."""
    error = cell.send("probes.fail", "on purpose").get(timeout=WAIT, propagate=False)
    assert (type(error).__name__, error.args) == ("ProbeError", ("on purpose",))


def test_traceback(cell: Cell) -> None:
    """A failed task's traceback names the line that raised."""
    result = cell.send("flow_probes.refuse_odd", 7)
    result.get(timeout=WAIT, propagate=False)
    assert 'raise OddNumberError(number, "odd")' in result.traceback
    cell.saw(str(result.traceback).splitlines()[-1])


def test_empty_and_nested_values(cell: Cell) -> None:
    """None, 0, False, empty and nested values come back as they were."""
    values: list[Any] = [None, 0, False, "", [], {}, {"a": [{"b": None, "ü": [1.5, [True]]}]}]
    sent = [cell.send("flow_probes.give", value) for value in values]
    back = [result.get(timeout=WAIT) for result in sent]
    assert [repr(value) for value in back] == [repr(value) for value in values]
    assert {result.state for result in sent} == {"SUCCESS"}


def test_forget(cell: Cell) -> None:
    """A result that was forgotten is PENDING again, for its sender as for everybody."""
    result = cell.send("flow_probes.add", 1, 1)
    assert result.get(timeout=WAIT) == 2
    if cell.limit:
        with pytest.raises(NotImplementedError):
            result.forget()
    else:
        result.forget()
        assert result.state == "PENDING"
        assert cell.app.AsyncResult(result.id).state == "PENDING"
        assert cell.running.app().AsyncResult(result.id).state == "PENDING"


def test_result_is_ignored(cell: Cell) -> None:
    """With ignore_result, of the task or of one call, the state stays PENDING and nothing is stored."""
    app = cell.running.app()
    with app.connection_for_write():
        ignored = [
            app.send_task("flow_probes.forget_me", (1, 1), ignore_result=True),
            app.send_task("flow_probes.forget_me", (1, 2)),
            app.send_task("flow_probes.keep_me", (1, 3), ignore_result=True),
        ]
        for result in ignored:
            until("the task ended", (cell.running.data / f"{result.id}.returned").exists)
        if is_stored := bool(cell.limit and cell.limit.what.endswith("its result is stored")):
            assert ignored[1].get(timeout=WAIT) == 3
        assert app.send_task("flow_probes.keep_me", (1, 4)).get(timeout=WAIT) == 5
        states = [app.AsyncResult(result.id).state for result in ignored]
        cell.saw(states)
        stays = bool(cell.limit) and cell.combination.backend.read_elsewhere  # a state by rpc went to whoever sent the task
        assert is_stored or (states == ["PENDING"] * 3) == (not stays)
    app.close()


def test_state_after_get(cell: Cell) -> None:
    """A sender that has waited for one result can watch another's state."""
    app = cell.running.app()
    with app.connection_for_write():
        assert app.send_task("flow_probes.add", (1, 1)).get(timeout=WAIT) == 2
        result = app.send_task("flow_probes.keep_me", (1, 2))
        until("the task ended", (cell.running.data / f"{result.id}.returned").exists)
        if cell.limit:
            assert result.state == "PENDING"
            result.get(timeout=WAIT)
        until("it succeeded", lambda: result.state == "SUCCESS", WAIT)
    app.close()


def test_result_expires(cell: Cell) -> None:
    """A result is gone after result_expires (here 1 s), and another is not."""
    brief, lasting = cell.running.app(RESULT_EXPIRES="1"), cell.running.app()
    with cell.running.beside("brief", OPTIONS="-Q brief -c 1", RESULT_EXPIRES="1"):
        results = [
            brief.send_task("flow_probes.keep_me", (1, 1), queue="brief"),
            lasting.send_task("flow_probes.keep_me", (1, 2)),
        ]
        for result in results:
            until("the task ended", (cell.running.data / f"{result.id}.returned").exists)
    cell.run("flow_probes.add", 1, 1, countdown=2)  # meanwhile the second passes, and nobody looks at the results
    assert [result.state for result in results] == ["SUCCESS" if cell.limit else "PENDING", "SUCCESS"]
    brief.close()
    lasting.close()


def test_ids(cell: Cell) -> None:
    """A task knows its own id, its parent's and its root's."""
    result = cell.send("flow_probes.ids_of_a_child")
    known = result.get(timeout=WAIT)
    assert known == {"id": result.id, "root": result.id, "parent": None, "child": known["child"]}
    written = cell.running.data / f"{result.id}.child"
    until("the child ran", lambda: written.exists() and written.read_text())
    assert written.read_text().split() == [known["child"], result.id, result.id]


def test_children(cell: Cell) -> None:
    """A result knows the tasks that its task has sent, and their values."""
    result = cell.send("flow_probes.ids_of_a_child")
    known = result.get(timeout=WAIT)
    (child,) = result.children
    assert child.id == known["child"]
    if cell.limit:
        until("the child ran", (cell.running.data / f"{result.id}.child").exists)
        with pytest.raises(ResultTimeout):
            child.get(timeout=0.5)
        assert child.state == "PENDING"
    else:
        assert child.get(timeout=WAIT)["parent"] == result.id
