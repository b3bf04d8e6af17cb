"""What surrounds a task: patched sockets, neighbours that run at the same time, contexts that do not mix."""

import os

from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell


def promised(cell: Cell) -> int:
    """How many tasks the pool's row promises to run at once."""
    return cell.combination.pool.concurrency or len(os.sched_getaffinity(0))


def test_sockets_yield(cell: Cell) -> None:
    """Sockets are the pool's patched ones where it has green threads, the standard library's elsewhere."""
    pool = cell.combination.pool
    module = cell.run("context_probes.socket_module")
    assert module.partition(".")[0] == (pool.name if pool.sockets_patched else "socket")
    cell.saw(f"socket.socket is from {module}")


def test_tasks_overlap(cell: Cell) -> None:
    """A task that waits lets another one run."""
    meeting = [cell.send("context_probes.meet", f"two-{cell.combination}", 2, 1.5 if cell.limit else 30) for _ in range(2)]
    here = [result.get(timeout=WAIT) for result in meeting]
    assert (max(here) < 2) if cell.limit else here == [2, 2]
    cell.saw(f"{max(here)} at the same time")


def test_concurrency_is_as_promised(cell: Cell) -> None:
    """As many tasks as the pool's row says run at once, and not one more."""
    number = promised(cell)
    place = f"full-{cell.combination}"
    meeting = [cell.send("context_probes.meet", place, number, 30) for _ in range(number)]
    assert [result.get(timeout=WAIT) for result in meeting] == [number] * number
    place = f"over-{cell.combination}"
    crowd = [cell.send("context_probes.meet", place, number + 1, 1.5) for _ in range(number + 1)]
    assert max(result.get(timeout=WAIT) for result in crowd) <= number
    cell.saw(f"{number} at once, {number + 1} never")


def test_context_is_kept_across_waits(cell: Cell) -> None:
    """A context variable that a task set is still its own after a wait in which others ran."""
    running = [cell.send("context_probes.remember", f"own-{number}") for number in range(4)]
    assert [result.get(timeout=WAIT)[1] for result in running] == [f"own-{number}" for number in range(4)]


def test_context_starts_fresh(cell: Cell) -> None:
    """A context variable that an earlier task set is not seen by a later one."""
    running = [cell.send("context_probes.remember", "left over") for _ in range(2 * promised(cell) + 2)]
    before = {result.get(timeout=WAIT)[0] for result in running}
    assert ("left over" in before) if cell.limit else before == {"fresh"}
    cell.saw(f"at the start of a task: {sorted(before)}")


def test_request_is_its_own(cell: Cell) -> None:
    """`current_task.request` is the task's own, also while others run beside it."""
    running = {result.id: result for result in (cell.send("context_probes.remember", "x") for _ in range(4))}
    for task_id, result in running.items():
        assert result.get(timeout=WAIT)[2:] == [task_id, task_id]


def test_cpu_tasks_use_several_cores(cell: Cell) -> None:
    """Two tasks that compute run in two processes at the same time."""

    def spans() -> list[list[float]]:
        return [result.get(timeout=WAIT) for result in [cell.send("context_probes.compute", 0.4) for _ in range(4)]]

    if cell.limit:
        assert len({process for process, _, _ in spans()}) == 1
    else:
        until("two processes compute at the same time", lambda: _two_at_once(spans()))


def _two_at_once(spans: list[list[float]]) -> bool:
    return any(a[0] != b[0] and a[1] < b[2] and b[1] < a[2] for a in spans for b in spans)
