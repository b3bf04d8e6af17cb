"""What goes over the wire: serializers, compression, signed messages, headers."""

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from kombu.exceptions import EncodeError

from celery_kit.base import security
from celery_kit.base.target import ROOT
from celery_kit.base.versions import unmet
from tests.harness.certificates import certificate
from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.containers import FOLDER, ROLES, SIGNED, Worker
from tests.integration.probes import wire_probes

NESTED = {"a": [1, {"b": [[], {}, None, True, -1.5]}], "ключ": "ünïcode 🐍 \0"}
#: By kind, texts and numbers that each serializer carries unchanged.
VALUES: dict[str, Any] = {
    "empty text": "",
    "nothing": None,
    "nested": NESTED,
    "large numbers": [2**53 + 1, 2**64 - 1, -(2**63), 1e-300],
    "a million letters alike": "a" * 1_000_000,
    "a million letters at random": b64encode(random.Random(7).randbytes(750_000)).decode(),
}


def fingerprint(value: Any) -> list[str]:
    """As `wire_probes.seen` takes it in the worker."""
    return [type(value).__name__, hashlib.sha256(repr(value).encode()).hexdigest()]


@contextmanager
def producer(cell: Cell, **environ: str) -> Iterator[Celery]:
    """A producer whose process has these settings in its environment."""
    with closing(cell.running.app(**environ)) as app:
        yield app


@contextmanager
def as_in_the_worker(probes: Any) -> Iterator[None]:
    """The module of probes under the name that it has in a worker, since a pickle names its class's module."""
    name, probes.Parcel.__module__ = probes.Parcel.__module__, "app.tasks.wire_probes"
    sys.modules["app.tasks.wire_probes"] = probes
    try:
        yield
    finally:
        del sys.modules["app.tasks.wire_probes"]
        probes.Parcel.__module__ = name


def codecs(cell: Cell) -> Worker:
    return cell.running.worker("codecs")


def raw(app: Celery, task: str, args: list[Any], **options: Any) -> Any:
    """The message that sending this task makes, taken from a queue that no worker consumes."""
    queue = f"wire-{uuid4().hex}"
    app.send_task(task, tuple(args), queue=queue, **options)
    with app.connection_for_read() as connection:
        bound: Any = app.amqp.queues[queue](connection.default_channel)
        message = until("the message is in its queue", bound.get, 20)
        message.ack()
        bound.delete()
    return message


def test_json_carries_values(cell: Cell) -> None:
    """JSON carries texts, nested values and large numbers of any size there and back."""
    for kind, value in {**VALUES, "beyond 64 bit": 10**40}.items():
        assert cell.run("wire_probes.same", value) == value, kind


def test_json_keeps_types(cell: Cell) -> None:
    """JSON brings datetime, date, time, Decimal, UUID and bytes back as what they were."""
    moments = [datetime(2026, 5, 4, 3, 2, 1, 7, UTC), datetime(2026, 5, 4, 3, 2), date(2026, 5, 4), time(3, 2, 1)]
    others = [Decimal("1.10"), Decimal("-0.000000000000000000001"), UUID(int=7), b"", b"text", b"\x00\xff" * 100]
    value = moments + others
    came = cell.run("wire_probes.same", value)
    assert came == value
    assert [type(one) for one in came] == [type(one) for one in value]
    assert cell.run("wire_probes.seen", value) == fingerprint(value)


def test_yaml_carries_values(cell: Cell) -> None:
    """A message in YAML carries texts, nested values, numbers of any size, bytes and dates; mappings come sorted."""
    codecs(cell)
    # A megabyte of YAML costs 3 s of processor time; a tenth shows the same.
    more = {"bytes": b"\x00\xff", "keys": {1: "one"}, "number": 10**40, "text": VALUES["a million letters at random"][:100_000]}
    dates = [date(2026, 5, 4), datetime(2026, 5, 4, 3, 2, 1, 7, UTC)]
    with producer(cell) as app:
        app.conf.task_serializer = "yaml"  # alone: the worker answers in json
        for value in [*list(VALUES.values())[:4], more, dates]:
            assert app.send_task("wire_probes.seen", [value], queue="codecs").get(timeout=WAIT) == fingerprint(value)
        turned = app.send_task("wire_probes.seen", [dict(reversed(more.items()))], queue="codecs")
        assert turned.get(timeout=WAIT) == fingerprint(more)
        assert raw(app, "wire_probes.seen", [1]).content_type == "application/x-yaml"


def test_msgpack_carries_values(cell: Cell) -> None:
    """A message in msgpack carries texts, nested values, bytes and numbers of 64 bit to a worker that accepts it."""
    codecs(cell)
    with producer(cell) as app:
        app.conf.task_serializer = "msgpack"
        for kind, value in {**VALUES, "bytes": [b"", b"\x00\xff"]}.items():
            sent = app.send_task("wire_probes.seen", [value], queue="codecs")
            assert sent.get(timeout=WAIT) == fingerprint(value), kind
        assert raw(app, "wire_probes.seen", [1]).content_type == "application/x-msgpack"


def test_unknown_type_is_refused_when_sent(cell: Cell) -> None:
    """What a serializer cannot carry raises an error in the sender, and nothing is sent."""
    for serializer, value in {"json": {1, 2}, "yaml": Decimal("1.1"), "msgpack": 2**64}.items():
        with pytest.raises(EncodeError) as refused:
            cell.send("wire_probes.same", value, serializer=serializer)
        cell.saw(f"{serializer}: {refused.value}")


def test_pickle_is_refused(cell: Cell) -> None:
    """A worker that was not told to accept pickle refuses the message unread, drops it and keeps consuming."""
    worker, marker = cell.running.worker("main"), uuid4().hex
    result = cell.send("wire_probes.seen", marker, serializer="pickle")

    def refusals() -> list[str]:
        logged = worker.logs()
        return [line for line in logged.splitlines() if "untrusted content of type pickle" in line] if marker in logged else []

    cell.saw(until("the worker says that it refuses", refusals)[-1])
    assert cell.run("wire_probes.same", 1) == 1
    assert result.state == "PENDING"


def test_pickle_is_carried_when_named(cell: Cell) -> None:
    """A worker told to accept pickle takes an object of the user's own class and gives one back."""
    environ = {"TASK_SERIALIZER": "pickle", "ACCEPT_CONTENT": "json,pickle"}
    with (
        cell.running.beside("pickle", OPTIONS="-Q pickle -c 1", **environ) as worker,
        producer(cell, **environ) as app,
        as_in_the_worker(wire_probes),
    ):
        came = app.send_task("wire_probes.unpack", [wire_probes.Parcel("hello")], queue="pickle").get(timeout=WAIT)
        assert (type(came), came.what) == (wire_probes.Parcel, "HELLO")
        warned = [line for line in worker.logs().splitlines() if "pickle is on" in line]
        assert len(warned) == (0 if SIGNED else 1), warned  # nobody without a key can send one
        cell.saw(" ".join(warned))


def compressed(cell: Cell, method: str, content_type: str) -> None:
    codecs(cell)
    # Brotli, as kombu calls it, takes 2 s of processor time for a million letters at random.
    alike, at_random = VALUES["a million letters alike"], VALUES["a million letters at random"][:100_000]
    for serializer in ("json", "msgpack"):
        with producer(cell, TASK_COMPRESSION=method) as app:
            app.conf.task_serializer = serializer  # alone: the worker answers in json
            for value in ("", alike, at_random, NESTED):
                sent = app.send_task("wire_probes.seen", [value], queue="codecs")
                assert sent.get(timeout=WAIT) == fingerprint(value)
            # kombu decompresses what has that header, and fails on what is not compressed that way.
            message = raw(app, "wire_probes.seen", [alike])
            assert (message.headers["compression"], len(message.body) > len(alike)) == (content_type, True)


def test_compression_zlib(cell: Cell) -> None:
    """TASK_COMPRESSION=zlib: messages go compressed, empty or large, and arrive unchanged."""
    compressed(cell, "zlib", "application/x-gzip")


def test_compression_bzip2(cell: Cell) -> None:
    """TASK_COMPRESSION=bzip2: messages go compressed, empty or large, and arrive unchanged."""
    compressed(cell, "bzip2", "application/x-bz2")


def test_compression_lzma(cell: Cell) -> None:
    """TASK_COMPRESSION=lzma: messages go compressed, empty or large, and arrive unchanged."""
    compressed(cell, "lzma", "application/x-lzma")


def test_compression_brotli(cell: Cell) -> None:
    """TASK_COMPRESSION=brotli: messages go compressed, empty or large, and arrive unchanged."""
    compressed(cell, "brotli", "application/x-brotli")


def test_compression_zstd(cell: Cell) -> None:
    """TASK_COMPRESSION=zstd: messages go compressed, empty or large, and arrive unchanged."""
    compressed(cell, "zstd", "application/zstd")


def test_result_compression(cell: Cell) -> None:
    """RESULT_COMPRESSION=zstd: the results server holds the value compressed, and any reader gets it back."""
    worker = codecs(cell)
    value = VALUES["a million letters alike"]
    with producer(cell) as app:
        result = app.send_task("wire_probes.same", [value], queue="codecs")
        assert result.get(timeout=WAIT) == value
        ignored = [line for line in worker.logs().splitlines() if "result_compression setting is ignored" in line]
        if cell.limit:
            assert ignored or unmet({"celery": ">=5.7"})  # earlier ones ignore it without a word
            cell.saw(ignored[0] if ignored else cell.limit.what)
        else:
            assert not ignored
            backend: Any = app.backend
            kept = backend.get(backend.get_key_for_task(result.id))
            assert b"application/zstd" in kept[:100] and len(kept) < len(value) / 50
            cell.saw(f"{len(value)} letters kept in {len(kept)} bytes")


def test_message_of_10_megabytes(cell: Cell) -> None:
    """A message of 10 MB arrives whole."""
    text = VALUES["a million letters at random"] * 10
    assert cell.run("wire_probes.seen", text) == fingerprint(text)


def test_headers_follow_the_protocol(cell: Cell) -> None:
    """A message's headers are those of Celery's task protocol 2, and the task sees the same."""
    given: dict[str, Any] = {
        "time_limit": 50,
        "soft_time_limit": 40,
        "retries": 2,
        "root_id": uuid4().hex,
        "parent_id": uuid4().hex,
    }
    message = raw(cell.app, "wire_probes.request", [1], kwargs={"b": 2}, task_id=(chosen := uuid4().hex), **given)
    common = {
        "task": "wire_probes.request",
        "root_id": given["root_id"],
        "parent_id": given["parent_id"],
        "retries": 2,
        "timelimit": [50, 40],
        "argsrepr": "(1,)",
        "kwargsrepr": "{'b': 2}",
    }
    headers = {**common, "lang": "py", "id": chosen, "eta": None, "expires": None, "group": None, "stamps": {}}
    assert {name: message.headers[name] for name in headers} == headers
    assert f"@{socket.gethostname()}" in message.headers["origin"]
    assert (message.content_type, message.properties["correlation_id"]) == ("application/json", chosen)
    again = cell.send("wire_probes.request", 1, kwargs={"b": 2}, **given)
    seen = again.get(timeout=WAIT)
    assert {name: seen[name] for name in common} == common
    assert (seen["id"], seen["origin"]) == (again.id, message.headers["origin"])
    cell.saw(message.headers)


def test_argsrepr_hides_secrets(cell: Cell) -> None:
    """`argsrepr` and `kwargsrepr` stand for the arguments in headers, logs and events; the task gets the real ones."""
    secret = uuid4().hex
    hidden = {"argsrepr": "('***',)", "kwargsrepr": "{'key': '***'}"}
    message = raw(cell.app, "wire_probes.request", [secret], kwargs={"key": secret}, **hidden)
    assert secret not in repr(message.headers) and secret in str(message.body)
    seen = cell.run("wire_probes.request", secret, kwargs={"key": secret}, **hidden)
    assert (seen["argsrepr"], seen["kwargsrepr"]) == tuple(hidden.values())
    assert cell.run("wire_probes.seen", secret, argsrepr="***") == fingerprint(secret)
    assert secret not in cell.running.worker("main").logs()  # the value that a task returns would be there


def test_custom_header_is_seen(cell: Cell) -> None:
    """A header of the producer's own is seen by the task, and by its retry."""
    headers = {"tenant": "ünï-7", "trace": ["a", 1]}
    for task in ("wire_probes.request", "wire_probes.request_of_retry"):
        seen = cell.run(task, headers=headers)
        cell.saw(f"{task}: {seen['headers']}")
        assert {name: seen["headers"][name] for name in headers} == headers, task


def test_child_task_knows_its_root(cell: Cell) -> None:
    """A task sent by a task carries its parent's id and the root's, but no header of the producer's own."""
    root = uuid4().hex
    result = cell.send("wire_probes.parent", root_id=root, headers={"tenant": "7"})
    assert result.get(timeout=WAIT)["headers"]["tenant"] == "7"
    left = cell.running.data / f"child-of-{result.id}.json"
    until("the child ran", left.exists)
    seen = json.loads(left.read_text())
    assert (seen["parent_id"], seen["root_id"]) == (result.id, root)
    assert "tenant" not in (seen["headers"] or {})


def test_correlation_id_is_the_task_id(cell: Cell) -> None:
    """A task's correlation id is its task id, which the producer may choose."""
    chosen = f"order-7-{uuid4().hex}"
    seen = cell.run("wire_probes.request", task_id=chosen)
    assert (seen["id"], seen["correlation_id"], seen["root_id"]) == (chosen, chosen, chosen)


# Signed messages. The worker `signed` trusts two certificates: its own and this process's.


@cache
def keys() -> Path:
    """This process's keys: NAME.key and, of those that are trusted, trusted/NAME.pem."""
    folder = FOLDER / f"keys-{os.getpid()}"
    (folder / "trusted").mkdir(parents=True)
    for name in ("worker", "host", "stranger"):
        key, made = certificate(name)
        (folder / f"{name}.key").write_bytes(key)
        (folder / ("." if name == "stranger" else "trusted") / f"{name}.pem").write_bytes(made)
    return folder


def variables(name: str) -> dict[str, str]:
    """The environment of a process that signs as `name`, and trusts whom the worker trusts."""
    made = next(keys().rglob(f"{name}.pem"))
    names = "SECURITY_KEY", "SECURITY_CERTIFICATE", "SECURITY_CERT_STORE"
    return dict(zip(names, map(str, (keys() / f"{name}.key", made, keys() / "trusted")), strict=True))


@contextmanager
def signing(cell: Cell, name: str = "host") -> Iterator[Celery]:
    """A producer that signs, and the worker that verifies."""
    signed_worker(cell)
    try:
        with producer(cell, **variables(name)) as app:
            yield app
    finally:  # what signs results and remote control belongs to the process
        if own := security.signer(cell.app):
            own.register()


def signed_worker(cell: Cell) -> Worker:
    folder = cell.running.data / "keys"
    if not folder.exists():
        shutil.copytree(keys(), folder)
        folder.chmod(0o755)
    return cell.running.worker("signed")


def refused(cell: Cell, app: Celery, why: str, **options: Any) -> None:
    """That the worker refuses the message, says why, and goes on with the next one."""
    worker = signed_worker(cell)
    result = app.send_task("wire_probes.same", [1], queue="signed", **options)

    def refusal() -> list[str]:
        return [line for line in worker.logs().splitlines() if why in line]

    cell.saw(until(f"the worker says {why}", refusal)[-1][:200])
    with signing(cell) as trusted:
        assert trusted.send_task("wire_probes.same", [2], queue="signed").get(timeout=WAIT) == 2
    assert cell.app.AsyncResult(result.id).state == "PENDING"


def test_signed_message_is_accepted(cell: Cell) -> None:
    """With the three SECURITY_ settings on both sides, a task and its result go signed and are accepted."""
    signed_worker(cell)
    program = (
        "from app import app; r = app.send_task('wire_probes.same', [[1, 'ü']], queue='signed');"
        f"print(app.conf.task_serializer, r.get(timeout={WAIT}))"
    )
    sent = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **cell.running.environ, **variables("host")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sent.stdout == "json [1, 'ü']\n", sent.stderr


def test_signed_ping_is_answered(cell: Cell) -> None:
    """Remote control goes signed too: a signed ping is answered, an unsigned one is not."""
    name = f"signed@{signed_worker(cell).docker.id[:12]}"
    with signing(cell) as app:
        # A broadcast reaches who listens at that moment, and the worker may have begun just now.
        answer = until("the signed ping is answered", lambda: app.control.ping(destination=[name], timeout=2))
        assert answer == [{name: {"ok": "pong"}}]
    assert not cell.app.control.ping(destination=[name], timeout=1)


def test_unsigned_message_is_refused(cell: Cell) -> None:
    """A worker that verifies refuses an unsigned task, dead-letters it and keeps consuming."""
    with producer(cell, **dict.fromkeys(variables("host"), "")) as app:
        refused(cell, app, "it is not signed")


def test_wrong_key_is_refused(cell: Cell) -> None:
    """A worker that verifies refuses what a stranger signed."""
    with signing(cell, "stranger") as app:
        refused(cell, app, "Unknown certificate")


def test_expired_certificate_is_refused(cell: Cell) -> None:
    """A worker that is to trust an expired certificate does not start, and says why in one line."""
    expired = cell.running.data / cell.mark
    shutil.copytree(keys(), expired)
    _, made = certificate("expired", -1)
    (expired / "trusted" / "expired.pem").write_bytes(made)
    role = ROLES["signed"]
    worker = cell.running.start(
        "expired", **{name: value.replace("/data/keys", f"/data/{cell.mark}") for name, value in role.items()}
    )
    try:
        assert worker.exit_code() == 2
        said = worker.logs()
    finally:
        worker.docker.remove(force=True, v=True)
        del cell.running.workers["expired"]
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "Expired certificate" in line]
    assert line.startswith("celery-kit: ")
    cell.saw(line)
