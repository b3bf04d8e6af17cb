"""Work that is made of other tasks: Celery's canvas."""

import json
import uuid
from typing import Any

import pytest
from celery import chain, chord, chunks, group, xmap, xstarmap
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import GroupResult, result_from_tuple

from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell


def add(cell: Cell, *args: int) -> Any:
    return cell.signature("canvas_probes.add", *args)


def total(cell: Cell) -> Any:
    return cell.signature("canvas_probes.total")


def send(work: Any, **options: Any) -> Any:
    """Send it; its result, of a type that Celery's stubs do not know."""
    return work.apply_async(**options)


def file() -> str:
    return f"{uuid.uuid4()}.json"


def written(cell: Cell, file: str) -> Any:
    """What a task wrote into the shared folder."""
    path = cell.running.data / file
    until(f"{file} is written", path.exists)
    return json.loads(path.read_text())


def gives(cell: Cell, work: Any, value: Any) -> None:
    """The work's value; or, where there are no chords, that sending it is refused."""
    if cell.limit:
        with pytest.raises(NotImplementedError, match="chords") as refused:
            work.apply_async()
        cell.saw(repr(refused.value))
    else:
        assert work.apply_async().get(timeout=WAIT) == value


def test_chain(cell: Cell) -> None:
    """A chain hands each result on to the next task."""
    result = send(chain(add(cell, 1, 2), add(cell, 10), add(cell, 100)))
    assert result.get(timeout=WAIT) == 113
    assert [result.parent.get(timeout=WAIT), result.parent.parent.get(timeout=WAIT)] == [13, 3]


def test_chain_stops_at_an_error(cell: Cell) -> None:
    """A chain ends where a task fails: its result is that task's error, and what follows never runs."""
    name = file()
    work = cell.signature("canvas_probes.fail", "on purpose") | cell.signature("canvas_probes.write", kwargs={"file": name})
    result = send(work)
    assert "on purpose" in str(result.get(timeout=WAIT, propagate=False))
    assert result.state == "FAILURE"
    assert result.parent.state in ("FAILURE", "PENDING" if cell.limit else "FAILURE")
    assert not (cell.running.data / name).exists()


def test_chain_of_chains(cell: Cell) -> None:
    """Chains nest: one inside another runs as one."""
    inner = chain(add(cell, 10), add(cell, 100))
    assert chain(add(cell, 1, 2), inner, add(cell, 1000)).apply_async().get(timeout=WAIT) == 1113


def test_chain_knows_its_parents(cell: Cell) -> None:
    """Each task of a chain knows the one before it and the first."""
    parents = cell.signature("canvas_probes.parents")
    result = send(parents | parents | parents)
    last = result.get(timeout=WAIT)
    middle, first = result.parent, result.parent.parent
    assert last == {"id": result.id, "parent": middle.id, "root": first.id}
    assert first.get(timeout=WAIT) == {"id": first.id, "parent": None, "root": first.id}


def test_group(cell: Cell) -> None:
    """A group gives every result, in the order of its tasks."""
    result = send(group([add(cell, n, n) for n in range(10)], app=cell.app))
    assert result.get(timeout=WAIT) == [2 * n for n in range(10)]
    assert (result.successful(), result.completed_count()) == (True, 10)


def test_group_with_an_error(cell: Cell) -> None:
    """A group's other tasks run when one fails; the error is raised, or given among the results."""
    work = [add(cell, 1, 1), cell.signature("canvas_probes.fail", "on purpose"), add(cell, 2, 2)]
    result = send(group(work, app=cell.app))
    one, error, other = result.get(timeout=WAIT, propagate=False)
    assert (one, str(error), other) == (2, "on purpose", 4)
    assert result.failed()
    with pytest.raises(Exception, match="on purpose"):
        result.get(timeout=WAIT)


def test_group_of_chains(cell: Cell) -> None:
    """A group of chains gives the last result of each."""
    result = send(group([add(cell, n, n) | add(cell, 1) for n in range(3)], app=cell.app))
    assert result.get(timeout=WAIT) == [1, 3, 5]


def test_group_skew(cell: Cell) -> None:
    """A skewed group's tasks become due one after the other."""
    work = group([cell.signature("canvas_probes.eta") for _ in range(3)], app=cell.app)
    etas = work.skew(start=0.2, step=0.2, stop=2).apply_async().get(timeout=WAIT)
    assert all(etas) and etas == sorted(etas), etas
    cell.saw(etas)


def test_chord(cell: Cell) -> None:
    """A chord calls its body once, with the results of the whole header in order."""
    body = cell.signature("canvas_probes.given")
    gives(cell, chord([add(cell, n, n) for n in range(5)], body, app=cell.app), [[[0, 2, 4, 6, 8]], {}])


def test_chord_of_one(cell: Cell) -> None:
    """A chord with a header of one task calls its body with a list of one."""
    gives(cell, chord([add(cell, 1, 1)], cell.signature("canvas_probes.given"), app=cell.app), [[[2]], {}])


def test_chord_of_many(cell: Cell) -> None:
    """A chord with a header of a hundred tasks loses none."""
    gives(cell, chord([add(cell, n, n) for n in range(100)], total(cell), app=cell.app), 9900)


def test_chord_of_none(cell: Cell) -> None:
    """A chord with an empty header calls its body with an empty list, on every backend."""
    assert chord([], total(cell), app=cell.app).apply_async().get(timeout=WAIT) == 0


def test_chord_in_a_chord(cell: Cell) -> None:
    """A chord can be a task of another's header."""
    inner = chord([add(cell, n, n) for n in range(3)], total(cell), app=cell.app)
    gives(cell, chord([inner, add(cell, 1, 1)], total(cell), app=cell.app), 8)


def test_chord_of_chains(cell: Cell) -> None:
    """A chord's header can be chains, and its body too."""
    header = [add(cell, n, n) | add(cell, 1) for n in range(3)]
    gives(cell, chord(header, total(cell) | add(cell, 100), app=cell.app), 109)


def test_group_in_a_chain(cell: Cell) -> None:
    """A group within a chain becomes a chord: what follows gets its results."""
    gives(cell, chain(add(cell, 1, 2), group([add(cell, 10), add(cell, 20)], app=cell.app), total(cell)), 36)


def test_group_at_the_end_of_a_chain(cell: Cell) -> None:
    """A group that ends a chain gets the result before it in every task; no chord is needed."""
    work = chain(add(cell, 1, 2), group([add(cell, 10), add(cell, 20)], app=cell.app))
    assert work.apply_async().get(timeout=WAIT) == [13, 23]


def test_two_groups_in_a_chain(cell: Cell) -> None:
    """A group after a group in a chain gets the first one's results as a list."""
    total_of = group([total(cell), total(cell)], app=cell.app)
    gives(cell, chain(group([add(cell, 1, 1), add(cell, 2, 2)], app=cell.app), total_of), [6, 6])


def test_chord_error(cell: Cell) -> None:
    """A chord whose header fails never calls its body: its result is a ChordError that names the task."""
    name = file()
    header = [add(cell, 1, 1), cell.signature("canvas_probes.fail", "on purpose")]
    work = chord(header, cell.signature("canvas_probes.write", kwargs={"file": name}), app=cell.app)
    if cell.limit:
        gives(cell, work, None)
    else:
        result = send(work)
        error = result.get(timeout=WAIT, propagate=False)
        assert (
            isinstance(error, ChordError) and f"Dependency {result.parent[1].id}" in str(error) and "on purpose" in str(error)
        )
        assert not (cell.running.data / name).exists()
        with pytest.raises(Exception, match="on purpose"):
            result.get(timeout=WAIT)
        cell.saw(error)


def test_chord_errback(cell: Cell) -> None:
    """A chord whose header fails calls the errback of its body."""
    name = file()
    body = total(cell).on_error(cell.signature("canvas_probes.on_error", kwargs={"file": name}))
    work = chord([add(cell, 1, 1), cell.signature("canvas_probes.fail", "on purpose")], body, app=cell.app)
    if cell.limit:
        gives(cell, work, None)
    else:
        result = send(work)
        seen = written(cell, name)
        assert seen["id"] == result.id and "on purpose" in seen["error"]
        cell.saw(seen)


def test_map(cell: Cell) -> None:
    """`map` calls a task for each item, within one task."""
    assert xmap(total(cell), [[1, 2], [3, 4]], app=cell.app).apply_async().get(timeout=WAIT) == [3, 7]


def test_starmap(cell: Cell) -> None:
    """`starmap` does so with each item as the arguments."""
    assert xstarmap(add(cell), [(1, 2), (3, 4)], app=cell.app).apply_async().get(timeout=WAIT) == [3, 7]


def test_chunks(cell: Cell) -> None:
    """`chunks` shares many calls out over a few tasks."""
    result = send(chunks(add(cell), [(n, n) for n in range(10)], 4, app=cell.app).group())
    assert result.get(timeout=WAIT) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]


def test_link(cell: Cell) -> None:
    """A linked callback gets the result."""
    name = file()
    result = cell.send("canvas_probes.add", 1, 2, link=cell.signature("canvas_probes.write", kwargs={"file": name}))
    assert (result.get(timeout=WAIT), written(cell, name)) == (3, 3)


def test_link_error(cell: Cell) -> None:
    """A linked errback gets the request and the error of the task that failed."""
    name = file()
    errback = cell.signature("canvas_probes.on_error", kwargs={"file": name})
    result = cell.send("canvas_probes.fail", "on purpose", link_error=errback)
    assert written(cell, name) == {"id": result.id, "error": "on purpose"}


def test_link_error_of_a_chain(cell: Cell) -> None:
    """An errback of a chain is called by whichever of its tasks fails."""
    name = file()
    work = chain(add(cell, 1, 2), cell.signature("canvas_probes.fail", "on purpose", immutable=True), add(cell, 3))
    result = send(work, link_error=cell.signature("canvas_probes.on_error", kwargs={"file": name}))
    assert written(cell, name) == {"id": result.parent.id, "error": "on purpose"}


def test_replace(cell: Cell) -> None:
    """A task replaces itself by another, whose value its id then gives."""
    _replaced(cell, "canvas_probes.replaced", 11)


def test_replace_by_a_chain(cell: Cell) -> None:
    """A task replaces itself by a chain."""
    _replaced(cell, "canvas_probes.replaced_by_chain", 111)


def _replaced(cell: Cell, task: str, value: int) -> None:
    name = file()
    result = cell.send(task, 1, name)
    assert written(cell, name) == value
    if cell.limit:
        with pytest.raises(ResultTimeout):
            result.get(timeout=1)
        cell.saw(f"the replacement ran, the sender sees {result.state}")
    else:
        assert result.get(timeout=WAIT) == value


def test_replace_within_a_chain(cell: Cell) -> None:
    """What follows in a chain follows the replacement of a task."""
    work = cell.signature("canvas_probes.replaced", 1, file()) | add(cell, 1000)
    assert work.apply_async().get(timeout=WAIT) == 1011


def test_replace_by_a_group(cell: Cell) -> None:
    """A task replaces itself by a group, whose results are collected by a chord."""
    _replaced_by_many(cell, "canvas_probes.replaced_by_group", [2, 4])


def test_replace_by_a_chord(cell: Cell) -> None:
    """A task replaces itself by a chord."""
    _replaced_by_many(cell, "canvas_probes.replaced_by_chord", 6)


def _replaced_by_many(cell: Cell, task: str, value: Any) -> None:
    result = cell.send(task, [1, 2])
    if cell.limit:
        error = result.get(timeout=WAIT, propagate=False)
        assert result.state == "FAILURE" and "NotImplementedError" in repr(error), repr(error)
        cell.saw(repr(error))
    else:
        assert result.get(timeout=WAIT) == value


def test_signature_as_data(cell: Cell) -> None:
    """A signature travels as an argument, and runs where it arrives."""
    name = file()
    work = add(cell, 1, 2) | cell.signature("canvas_probes.write", kwargs={"file": name})
    cell.run("canvas_probes.runs", json.loads(json.dumps(work)))
    assert written(cell, name) == 3


def test_immutable_signature(cell: Cell) -> None:
    """An immutable signature does not take the result before it."""
    given = cell.signature("canvas_probes.given", "alone", immutable=True)
    assert (add(cell, 1, 2) | given).apply_async().get(timeout=WAIT) == [["alone"], {}]


def test_partial(cell: Cell) -> None:
    """A partial's arguments come after those of the call, and its keywords are merged with them."""
    partial = cell.signature("canvas_probes.given", "old", kwargs={"a": 1, "b": 1})
    result = partial.apply_async(("new",), {"b": 2, "c": 3})
    assert result.get(timeout=WAIT) == [["new", "old"], {"a": 1, "b": 2, "c": 3}]


def test_stamps(cell: Cell) -> None:
    """Stamps of a signature arrive in the request of every task in it."""
    seen = cell.signature("canvas_probes.stamps", immutable=True)
    work = chain(seen.clone(), seen.clone())
    work.stamp(order="17")
    result = send(work)
    last, first = result.get(timeout=WAIT), result.parent.get(timeout=WAIT)
    assert last["stamped"] == first["stamped"] == ["order"], (last, first)
    assert last["stamps"] == first["stamps"], (last, first)
    cell.saw(last["stamps"])


def test_headers(cell: Cell) -> None:
    """A header of one's own arrives in the task's request."""
    assert cell.run("canvas_probes.header", "x-tenant", headers={"x-tenant": "acme"}) == "acme"


def test_add_to_parent(cell: Cell) -> None:
    """A task's result lists the tasks that it sent, but those with add_to_parent=False."""
    result = cell.send("canvas_probes.children")
    own, _ = result.get(timeout=WAIT)
    assert [child.id for child in result.children] == [own]


def test_collect(cell: Cell) -> None:
    """`collect` walks through the results of a task and of its callbacks."""
    name = file()
    callback = add(cell, 10) | cell.signature("canvas_probes.write", kwargs={"file": name})
    result = cell.send("canvas_probes.add", 1, 2, link=callback)
    assert (result.get(timeout=WAIT), written(cell, name)) == (3, 13)
    if cell.limit:
        with pytest.raises(ResultTimeout):
            list(result.collect(timeout=1))
    else:
        assert [value for _, value in result.collect(timeout=WAIT)][:2] == [3, 13]


def test_result_as_data(cell: Cell) -> None:
    """A chain's result can be kept as JSON and be made a result again."""
    result = send(chain(add(cell, 1, 2), add(cell, 10)))
    again: Any = result_from_tuple(json.loads(json.dumps(result.as_tuple())), app=cell.app)
    assert (again.get(timeout=WAIT), again.parent.get(timeout=WAIT)) == (13, 3)


def test_group_result_is_restored(cell: Cell) -> None:
    """A saved group's result is restored by its id, in another process too."""
    result = send(group([add(cell, n, n) for n in range(3)], app=cell.app))
    assert result.get(timeout=WAIT) == [0, 2, 4]
    if cell.limit:
        with pytest.raises(NotImplementedError) as refused:
            result.save()
        cell.saw(repr(refused.value))
    else:
        result.save()
        again = GroupResult.restore(result.id, app=cell.running.app())
        assert again is not None and again.get(timeout=WAIT) == [0, 2, 4]
