"""What a running stack does now: its broker, its queues, its workers, beat. `python -m app.status` shows it.

Nobody is waited for longer than a second: a server that is away, or a worker that does not answer, is what the table is for.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name

from app import app
from app.facts import PATIENCE, Member, Server
from app.profile import Profile


@dataclass(frozen=True)
class Snapshot:
    """What was found. `broker`, `results`: what the server said, or in words why it did not; None: there is none.

    `unasked`: in words why the workers could not be asked.
    """

    broker: Server | str
    results: Server | str | None
    workers: dict[str, dict[str, Any]]
    members: list[Member]
    broker_url: str = ""  # without their passwords
    results_url: str = ""
    unasked: str = ""


def ask_broker() -> Server | str:
    """What the broker says, or one line on why it does not."""
    profile = Profile.from_environ()
    options = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "max_retries": 0}
    try:
        with app.connection_for_read(connect_timeout=PATIENCE, transport_options=options) as connection:
            # Once: connect() waits 2 s, and tries again.
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            server: Server = symbol_by_name(profile.broker.facts)(app, connection, os.environ)
            return server
    except Exception as error:  # whatever the room's client raises: it is shown, not handled
        return f"does not answer: {_first_line(error)}"


def ask_results() -> Server | str | None:
    """What the results server says, or one line on why it does not; None where the backend has none."""
    backend = Profile.from_environ().backend
    if not backend.facts:
        return None
    try:
        server: Server = symbol_by_name(backend.facts)(app)
        return server
    except Exception as error:
        return f"does not answer: {_first_line(error)}"


def ask_workers(expected: int, patience: float) -> tuple[dict[str, dict[str, Any]], str]:
    """What each worker answers, by node name, and why nobody could be asked: a broker that is full takes no question either.

    Waits until `expected` have answered, `patience` seconds at most.
    """
    app.conf.publish_timeout = patience  # this process sends nothing else
    inspect: Any = app.control.inspect(timeout=patience, limit=expected or None)
    try:
        return inspect._request("vitals") or {}, ""
    except OperationalError as error:
        return {}, _first_line(error)


def snapshot(tell: Callable[[], list[Member]] = list, patience: float = PATIENCE) -> Snapshot:
    """Ask all of them, at the same time where that can be; `tell` is asked who should be there. `patience`, in seconds, is for
    the workers.
    """
    with ThreadPoolExecutor() as asking:
        told, broker, results = asking.submit(tell), asking.submit(ask_broker), asking.submit(ask_results)
        found, members = broker.result(), told.result()
        expected = sum(member.running for member in members if member.node)
        ask = isinstance(found, Server) and (expected or not members)
        workers, unasked = ask_workers(expected, patience) if ask else ({}, "")
        return Snapshot(found, results.result(), workers, members, app.connection().as_uri(), app.backend.as_uri(), unasked)


def lines(found: Snapshot) -> list[str]:
    """The table, ready to print."""
    shown = [f"broker    {_server(found.broker, found.broker_url)}"]
    shown += [f"          {note}" for note in (found.broker.notes if isinstance(found.broker, Server) else [])]
    shown += [f"          workers cannot be asked: {found.unasked}"] if found.unasked else []
    if found.results:
        shown.append(f"results   {_server(found.results, found.results_url)}")
    else:
        shown.append("results   as messages, to whoever sent the task; no server")
    if isinstance(found.broker, Server):
        queues = [
            (one.name, *map(_number, (one.waiting, one.unacknowledged, one.consumers)), _age(one.oldest))
            for one in found.broker.queues
        ]
        shown += ["", *_columns(("queue", "waiting", "unacknowledged", "consumers", "oldest"), queues)]
    headings = ("worker", "pool", "at once", "state", "consumes", "active", "reserved", "processed", "memory")
    rows = [_worker(node, found) for node in sorted({*found.workers, *(m.node for m in found.members if m.node)})]
    shown += ["", *(_columns(headings, rows) if rows else ["worker    none answered"]), ""]
    return shown + (_beats(found.members) or ["beat      none in this stack"])


def state_of(node: str, found: Snapshot) -> str:
    """A worker's state in words: `consuming` is what it should be."""
    member = next((member for member in found.members if member.node == node), None)
    if answer := found.workers.get(node):
        return "consuming" if answer["consuming"] else "ALIVE, CONSUMES NOTHING"
    if member is None or not member.running:
        return (member.state if member else "unknown").upper()
    if isinstance(found.broker, str) or found.unasked:
        return f"{member.state}, cannot be asked"
    return f"{member.state}, NO ANSWER"


def _worker(node: str, found: Snapshot) -> tuple[str, ...]:
    answer = found.workers.get(node)
    if not answer:
        return (node, "", "", state_of(node, found), "", "", "", "", "")
    numbers = (str(answer[name]) for name in ("active", "reserved", "processed"))
    queues = ",".join(answer["consuming"])
    return (node, answer["pool"], str(answer["concurrency"]), state_of(node, found), queues, *numbers, _bytes(answer["memory"]))


def _beats(members: list[Member]) -> list[str]:
    shown = []
    for member in members:
        if member.role != "beat":
            continue
        shown.append(f"beat      {member.state if member.running else member.state.upper()}")
        for name, entry in member.said.items() if member.running else []:
            last = f"last run {_ago(entry['last'])} ago" if entry["last"] else "not run yet"
            shown.append(f"          {name}: {last}, next in {_ago(entry['next'])}")
    return shown


def _server(server: Server | str, url: str) -> str:
    if isinstance(server, str):
        return f"{url}: DOES NOT ANSWER ({server.partition(': ')[2]})"
    keys = f", {server.keys} keys" if server.keys is not None else ""
    memory = f", {_bytes(server.memory)}" if server.memory else ""
    return f"{server.product} {server.version}{keys}{memory} at {url}"


def _columns(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
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
    print("\n".join(lines(snapshot())))


if __name__ == "__main__":
    main()
