"""The state of a running stack: broker, queues, workers, beat. `python -m celery_kit.operate.look.status`, `make status`.

It waits for no server or worker longer than a second, because the table has to show those that do not answer.
"""

import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from kombu.utils.imports import symbol_by_name

from celery_kit import brokers, results
from celery_kit.base import facts
from celery_kit.base.facts import PATIENCE, Held, Member, Queue, Server, Vitals, address, readable, vitals_of
from celery_kit.operate.arguments import Parser
from celery_kit.operate.groups import Group
from celery_kit.operate.target import app

SHOWN_TASKS = 30
#: What JSON=1 has of a worker's report.
WORKERS = (
    "pool", "version", "concurrency", "consuming", "paused", "active", "reserved", "scheduled", "processed", "memory"
)  # fmt: skip
GROUPS = ("group", "pool", "consuming", "queues", "target wait")
#: Facts about a server, or why it did not answer.
Found = TypeVar("Found", bound=Server | str | None)


@dataclass(frozen=True)
class Snapshot:
    """What was found. `broker`, `results`: facts about the server, or why it did not answer; None: there is none.

    `unasked`: why the workers could not be queried, as text; empty if they were. `groups`: those that the stack runs, by name;
    None: not known.
    """

    broker: Server | str
    results: Server | str | None
    workers: dict[str, Vitals]
    members: list[Member]
    unasked: str = ""
    broker_url: str = ""  # for a server that did not answer
    results_url: str = ""
    groups: tuple[Group, ...] | None = None


def ask_broker() -> Server | str:
    """Facts about the first broker that answers; if none does, the reason in one line."""
    broker = brokers.room(app.conf.broker_read_url)
    options = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "max_retries": 0}
    unanswered: list[str] = []
    try:
        with app.connection_for_read(connect_timeout=PATIENCE, transport_options=options) as connection:

            def gone(error: Exception, _: float) -> None:
                unanswered.append(f"{readable(connection.as_uri())} does not answer: {_first_line(error)}")

            # One try each, because connect() would wait 2 s and retry.
            others = max(0, len(connection.alt) - 1)
            connection.ensure_connection(gone, others, interval_start=0, reraise_as_library_errors=False)
            ask = symbol_by_name(broker.facts) if broker and broker.facts else facts.of_any_broker
            found: Server = ask(app, connection, os.environ)
            return replace(found, notes=[*unanswered, *found.notes], url=readable(connection.as_uri()))
    except Exception as error:  # any error of a broker's client is shown to the user
        return f"does not answer: {_first_line(error)}"


def ask_results() -> Server | str | None:
    """Facts about the results server, or the reason in one line if it does not answer; None if the backend has no server."""
    try:
        backend = results.room(app.conf.result_backend)
        if backend is None:
            return Server(type(app.backend).__name__, "", notes=["the kit has no module for this result backend"])
        found: Server | None = symbol_by_name(backend.facts)(app) if backend.facts else None
        return found
    except Exception as error:
        return f"does not answer: {_first_line(error)}"


def _results_url() -> str:
    try:
        return readable(app.backend.as_uri())
    except Exception:  # its package or one of its settings is missing, which ask_results reports
        return str(app.conf.result_backend).partition(":")[0]


def ask_workers(expected: int, patience: float) -> tuple[dict[str, Vitals], str]:
    """Each worker's report, by node name, and the reason if none could be queried: a full broker refuses the query too.

    Waits until `expected` workers have answered, for `patience` seconds at most. A worker without the kit reports only what
    Celery's own commands report.
    """
    app.conf.publish_timeout = patience  # this process sends nothing but the query
    try:
        inspect: Any = app.control.inspect(timeout=patience, limit=expected or None)
        answers = {node: vitals_of(answer) for node, answer in (inspect._request("vitals") or {}).items()}
        if others := [node for node, answer in answers.items() if answer["consuming"] is None]:
            inspect = app.control.inspect(others, timeout=patience, limit=len(others))
            for node, queues in (inspect.active_queues() or {}).items():
                answers[node]["consuming"] = [queue["name"] for queue in queues]
        return answers, ""
    except Exception as error:
        return {}, _first_line(error)


def snapshot(list_members: Callable[[], list[Member]] = list, patience: float = PATIENCE) -> Snapshot:
    """Ask broker, results server and workers, at the same time where possible. `list_members`: returns the stack's
    processes.

    `patience`: how long to wait for the workers, in seconds.
    """
    with ThreadPoolExecutor() as asking:
        stack, broker, results = asking.submit(list_members), asking.submit(ask_broker), asking.submit(ask_results)
        found, members = broker.result(), stack.result()
        expected = sum(member.running for member in members if member.node)
        ask = isinstance(found, Server) and (expected or not members)
        workers, unasked = ask_workers(expected, patience) if ask else ({}, "")
        return Snapshot(found, results.result(), workers, members, unasked, address(app), _results_url())


def packed(found: Snapshot) -> str:
    """A snapshot as one line of JSON, for a process of another machine, or of another environment."""
    return json.dumps(asdict(found))


def unpacked(text: str) -> Snapshot:
    """The snapshot that :func:`packed` wrote. Raises ValueError, KeyError or TypeError for anything else."""
    given = json.loads(text)
    members = [Member(**one) for one in given.pop("members")]
    given["groups"] = given.get("groups") and tuple(Group.from_note(json.dumps(one)) for one in given["groups"])
    servers = {name: _unpacked_server(given.pop(name)) for name in ("broker", "results")}
    return Snapshot(**servers, members=members, **given)


def seen(found: Snapshot, address: Callable[[str], str]) -> Snapshot:
    """A snapshot with the addresses that the servers have on another machine. `address`: a function that translates one."""

    def server(one: Found) -> Found:
        return replace(one, url=address(one.url)) if isinstance(one, Server) else one

    return replace(
        found,
        broker=server(found.broker),
        results=server(found.results),
        broker_url=address(found.broker_url),
        results_url=address(found.results_url),
    )


def _unpacked_server(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    shapes = {
        "queues": [Queue(**one) for one in given["queues"]],
        "faults": [tuple(one) for one in given["faults"]],
        "held": [Held(**one) for one in given["held"]],
    }
    return Server(**{**given, **shapes})


def document(found: Snapshot) -> dict[str, object]:
    """What JSON=1 prints, of what the table shows (docs/json.md)."""
    nodes = sorted({*found.workers, *(one.node for one in found.members if one.node)})
    groups = {one.node: one.group for one in found.members}
    empty = vitals_of({})
    return {
        "broker": _of_server(found.broker, found.broker_url),
        "results": found.results and _of_server(found.results, found.results_url),
        "queues": [asdict(one) for one in found.broker.queues] if isinstance(found.broker, Server) else [],
        "held": [asdict(one) for one in found.broker.held] if isinstance(found.broker, Server) else [],
        "groups": [
            {**asdict(one), "consuming": _consuming(one, found), "paused": is_paused(one.queues, found)}
            for one in found.groups or ()
        ],
        "workers": [
            {
                "name": node,
                "state": state_of(node, found),
                "group": groups.get(node) or None,
                **{name: value for name, value in found.workers.get(node, empty).items() if name in WORKERS},
            }
            for node in nodes
        ],
        "beats": [
            {
                "state": one.state,
                "running": one.running,
                "leads": one.leads,
                "entries": [{"name": name, **it} for name, it in one.said.items()],
            }
            for one in found.members
            if one.role == "beat"
        ],
        "tasks": sorted({name for answer in found.workers.values() for name in answer["tasks"] or ()}),
        "unasked": found.unasked or None,
    }


def _of_server(server: Server | str, url: str) -> dict[str, object]:
    if isinstance(server, str):
        return {"answers": False, "why": server.partition(": ")[2], "url": url}
    about = {name: getattr(server, name) for name in ("product", "version", "memory", "keys", "notes", "delayed")}
    return {"answers": True, "why": None, "url": server.url or url, **about}


def lines(found: Snapshot) -> list[str]:
    """The table of `make status`, by lines."""
    shown = [f"broker    {_server(found.broker, found.broker_url)}"]
    shown += [f"          {note}" for note in (found.broker.notes if isinstance(found.broker, Server) else [])]
    shown += [f"          workers cannot be asked: {found.unasked}"] if found.unasked else []
    if found.results:
        shown.append(f"results   {_server(found.results, found.results_url)}")
        shown += [f"          {note}" for note in (found.results.notes if isinstance(found.results, Server) else [])]
    else:
        shown.append("results   as messages, to whoever sent the task; no server")
    if isinstance(found.broker, Server):
        queues: list[tuple[str, ...]] = [
            (one.name, *map(_number, (one.waiting, one.unacknowledged, one.consumers)), _age(one.oldest))
            for one in found.broker.queues
        ]
        of_queues: tuple[str, ...] = ("queue", "waiting", "unacknowledged", "consumers", "oldest")
        if any(one.paused for one in found.broker.queues):
            of_queues = (*of_queues, "state")
            queues = [(*row, "paused" * bool(one.paused)) for row, one in zip(queues, found.broker.queues, strict=True)]
        shown += ["", *_columns(of_queues, queues)]
        held = [(str(one.number), _holder(one), one.queue, one.task, one.id) for one in found.broker.held]
        shown += ["", *_columns(("unacknowledged", "held by", "queue", "task", "id"), held)] if held else []
    headings: tuple[str, ...] = ("worker", "pool", "at once", "state", "consumes", "active", "reserved", "processed", "memory")
    rows = [_worker(node, found) for node in sorted({*found.workers, *(m.node for m in found.members if m.node)})]
    if any(answer["version"] for answer in found.workers.values()):
        headings = (*headings, "version")
        rows = [(*row, _version(row[0], found)) for row in rows]
    shown += ["", *_columns(GROUPS, [_group(one, found) for one in found.groups])] if found.groups else []
    shown += ["", *(_columns(headings, rows) if rows else ["worker    none answered"]), ""]
    return shown + (_beats(found.members) or ["beat      none in this stack"]) + _tasks(found)


def _group(group: Group, found: Snapshot) -> tuple[str, ...]:
    """A group's row: how many of its workers consume, and how long its target lets a task wait."""
    consuming = _consuming(group, found)
    least, most = group.scale
    bounds = f"{least}" if least == most else f"{least}-{most}"
    state = "paused" if is_paused(group.queues, found) else f"{consuming} of {bounds}"
    return (group.name, group.pool, state, ",".join(group.queues), _age(group.target_wait))


def _consuming(group: Group, found: Snapshot) -> int:
    """How many of a group's workers consume."""
    nodes = [one.node for one in found.members if one.node and one.group == group.name]
    return sum(state_of(node, found) == "consuming" for node in nodes)


def is_paused(queues: Collection[str], found: Snapshot) -> bool:
    """Whether all of these queues are paused."""
    paused = {one.name for one in found.broker.queues if one.paused} if isinstance(found.broker, Server) else set()
    return bool(queues) and paused.issuperset(queues)


def state_of(node: str, found: Snapshot) -> str:
    """A worker's state in words: `consuming` is what it should be, or `paused`, where all of its queues are."""
    member = next((member for member in found.members if member.node == node), None)
    if answer := found.workers.get(node):
        if answer["consuming"] is None:
            return "alive, does not report what it consumes"
        idle = "paused" if answer["paused"] else "ALIVE, CONSUMES NOTHING"
        return "consuming" if answer["consuming"] else idle
    if member is None or not member.running:
        return (member.state if member else "unknown").upper()
    if isinstance(found.broker, str) or found.unasked:
        return f"{member.state}, cannot be asked"
    return f"{member.state}, NO ANSWER"


def _holder(held: Held) -> str:
    if not held.holder:
        return "nobody, or a worker without the kit"
    return held.holder if held.dead is None else f"NOBODY: {held.holder} is dead"


def _worker(node: str, found: Snapshot) -> tuple[str, ...]:
    answer = found.workers.get(node)
    if not answer:
        return (node, "", "", state_of(node, found), "", "", "", "", "")
    numbers = (_number(answer[name]) for name in ("active", "reserved", "processed"))
    memory = "-" if answer["memory"] is None else _bytes(answer["memory"])
    queues, at_once = ",".join(answer["consuming"] or ()), _number(answer["concurrency"])
    return (node, answer["pool"] or "-", at_once, state_of(node, found), queues, *numbers, memory)


def _version(node: str, found: Snapshot) -> str:
    answer = found.workers.get(node)
    return (answer["version"] or "-") if answer else ""


def _tasks(found: Snapshot) -> list[str]:
    """The tasks that the workers know, limited to what fits on a screen."""
    names = sorted({name for answer in found.workers.values() for name in answer["tasks"] or ()})
    number = max((answer["registered"] or 0 for answer in found.workers.values()), default=0)
    more = max(number, len(names)) - len(names[:SHOWN_TASKS])
    return [f"tasks     {', '.join(names[:SHOWN_TASKS])}{f', and {more} more' if more else ''}"] if names else []


def _beats(members: list[Member]) -> list[str]:
    shown = []
    for member in members:
        if member.role != "beat":
            continue
        leads = {None: "", True: ", leads", False: ", follows"}[member.leads]
        shown.append(f"beat      {member.state + leads if member.running else member.state.upper()}")
        for name, entry in member.said.items() if member.running and member.leads is not False else []:
            last = f"last run {_ago(entry['last'])} ago" if entry["last"] else "not run yet"
            shown.append(f"          {name}: {last}, next in {_ago(entry['next'])}")
    return shown


def _server(server: Server | str, url: str) -> str:
    if isinstance(server, str):
        return f"{url}: DOES NOT ANSWER ({server.partition(': ')[2]})"
    keys = f", {server.keys} keys" if server.keys is not None else ""
    memory = f", {_bytes(server.memory)}" if server.memory else ""
    return f"{server.product}{server.version and ' '}{server.version}{keys}{memory} at {server.url or url}"


def _columns(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[place]) for row in [headings, *rows]) for place in range(len(headings))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in [headings, *rows]]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _bytes(value: int) -> str:
    return f"{value / 1e6:.0f} MB"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _ago(moment: str) -> str:
    return _age(abs((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main() -> None:
    """Print the table, or the snapshot as JSON."""
    parser = Parser(description="Show broker, queues and workers.")
    parser.add_argument("--json", action="store_true", help="one JSON object (docs/json.md)")
    parser.add_argument("--packed", action="store_true", help="for another process; seconds and members come by standard input")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(document(snapshot())))
    elif given.packed:
        patience, members = json.load(sys.stdin)
        print(packed(snapshot(lambda: [Member(**one) for one in members], patience)))
    else:
        print("\n".join(lines(snapshot())))


if __name__ == "__main__":
    main()
