"""Celery's Redis result backend, with one round trip for a group of results. Celery needs two or three for each.

A late state of a task never overwrites its SUCCESS. Celery reads and then writes. Here a script (`store.lua`) does both in one
step, so that two workers cannot interleave. A late RETRY or STARTED does not overwrite a final state either (`Write.lasting`).
Otherwise the sender would wait for ever, as with plain Celery after a retry that ended before RETRY was stored. The script
reads JSON only: a result with another serializer, or a compressed one, is stored as by Celery.
Source: celery/backends/redis.py, base.py (_store_result).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import cached_property, partial
from time import time_ns
from typing import TYPE_CHECKING

from celery import states
from celery.exceptions import BackendStoreError
from kombu.exceptions import EncodeError
from kombu.utils.encoding import bytes_to_str
from redis.exceptions import NoScriptError, ResponseError

from celery_kit.base.lua import cannot_write, script
from celery_kit.engine.commit import Value, Write, commit
from celery_kit.engine.parts import on
from celery_kit.engine.quick_json import kombus_writer, quoted, text_of

if TYPE_CHECKING:
    from celery.app.task import Context
    from upstream.celery_results import RedisBackend
    from upstream.celery_results import SentinelBackend as CelerysSentinelBackend
    from upstream.redis import Client
else:
    from celery.backends.redis import RedisBackend
    from celery.backends.redis import SentinelBackend as CelerysSentinelBackend

STORE = script(__name__, "store")


def _made(write: Write) -> bytes:
    value = write.value() if callable(write.value) else write.value
    return value.encode() if isinstance(value, str) else value


class Backend(RedisBackend):
    """See the module."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._sha = ""
        self._second = -1, "", ""
        extended = self.app.conf.find_value_for_key("extended", "result")
        self._short = on("result_text") and self.serializer == "json" and not self.compression and not extended

    def store_group(self, writes: list[Write]) -> None:
        """Store states: those with the same expiry and rule in one round trip. Raises redis-py's errors; may be repeated."""
        alike: dict[tuple[int, tuple[str, ...]], list[Write]] = {}
        for write in writes:
            alike.setdefault((write.expires, write.lasting), []).append(write)
        for (expires, lasting), group in alike.items():
            keys, values = [self._key(write) for write in group], [_made(write) for write in group]
            for place in self._evaluate(len(keys), *keys, expires, f" {' '.join(lasting)} ", *values):
                self._store_by_hand(group[place - 1])

    def _key(self, write: Write) -> bytes:
        """The key of get_key_for_task, for an id that is a str."""
        return self.task_keyprefix + write.task_id.encode()

    def _evaluate(self, *arguments: object) -> list[int]:
        # Not `evalsha`: redis-py 8 parses each of its arguments there.
        run = self.client.execute_command
        with suppress(NoScriptError):
            if self._sha:
                return list(run("EVALSHA", self._sha, *arguments))
        self._sha = self.client.script_load(STORE)
        return list(run("EVALSHA", self._sha, *arguments))

    def _store_by_hand(self, write: Write) -> None:
        key = self._key(write)
        if self.decode_result(self.client.get(key))["status"] not in write.lasting:
            self._set(key, _made(write), write.expires)

    def store_result(
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: object = None,
        request: Context | None = None,
        **options: object,
    ) -> object:
        """Store a state, or buffer it for the group commit. Returns the encoded result. Raises redis-py's errors."""
        if not commit.takes(self.app, task_id, state, request):
            return super().store_result(task_id, result, state, traceback, request=request, **options)
        value: Value
        if state == states.STARTED:
            value = partial(self._value, task_id, result, state, traceback, request)
        else:
            result = self.encode_result(result, state)
            value = self._value(task_id, result, state, traceback, request)
        commit.result(Write(task_id, value, self.expires or 0, state))
        return result

    def _store_result(
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: object = None,
        request: Context | None = None,
        **options: object,
    ) -> object:
        value = self._value(task_id, result, state, traceback, request)
        expires = self.failure_expires if state == states.FAILURE else self.expires
        write = Write(self._id(self.get_key_for_task(task_id)), value, expires or 0, state)
        if commit.running:
            commit.store(write)
        else:
            self.store_group([write])
        return result

    def _value(
        self, task_id: str | bytes, result: object, state: str, traceback: object, request: Context | None
    ) -> bytes | str:
        task_id = task_id.decode() if isinstance(task_id, bytes) else task_id
        value: bytes | str
        if self._short and kombus_writer():
            try:
                value = self._json(task_id, result, state, traceback, request)
            except Exception as error:
                raise EncodeError(error) from error  # like kombu
        else:
            meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
            value = self.encode(meta | {"task_id": task_id})
        if len(value) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError("value too large for Redis backend")
        return value

    def _json(self, task_id: str, result: object, state: str, traceback: object, request: Context | None) -> str:
        """Celery's _get_result_meta as text: making a dictionary and encoding it takes twice as long."""
        children = self.current_task_children(request)
        done = self._now() if state in self.READY_STATES else "null"
        more = ""
        if request:
            if group := getattr(request, "group", None):
                more = f', "group_id": {text_of(group)}'
            if parent := getattr(request, "parent_id", None):
                more += f', "parent_id": {text_of(parent)}'
        return (
            f'{{"status": {quoted(state)}, "result": {text_of(result)}, "traceback": {text_of(traceback)}, '
            f'"children": {"[]" if children == [] else text_of(children)}, "date_done": {done}{more}, '
            f'"task_id": {text_of(task_id)}}}'
        )

    def _now(self) -> str:
        """datetime.now(timezone).isoformat(), in quotes. A second's text is made once."""
        nanoseconds = time_ns()
        second, fraction = divmod(nanoseconds // 1_000, 1_000_000)
        known, before, after = self._second
        if second != known:
            text = datetime.fromtimestamp(second, self.app.timezone).isoformat()
            before, after = quoted(text[:19])[:-1], quoted(text[19:])[1:]
            self._second = second, before, after
        return f"{before}.{fraction:06}{after}" if fraction else f"{before}{after}"

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether an operation may work in a moment: also if the server cannot write for now."""
        return super().exception_safe_to_retry(exc) or (isinstance(exc, ResponseError) and cannot_write(exc))

    # What this process has buffered is stored before it reads.

    def _id(self, key: str | bytes) -> str:
        """The id of the task that a key belongs to."""
        return bytes_to_str(key).removeprefix(bytes_to_str(self.task_keyprefix))

    def get(self, key: str | bytes) -> bytes | None:
        """The value of a key. Raises redis-py's errors."""
        commit.before_read([self._id(key)])
        return super().get(key)

    def mget(self, keys: Collection[str | bytes]) -> Iterable[bytes | None]:
        """The values of several keys. Raises redis-py's errors."""
        commit.before_read([self._id(key) for key in keys])
        return super().mget(keys)

    def _wait_for_pending(self, result: object, **options: object) -> Iterator[object]:
        commit.try_flush()
        return super()._wait_for_pending(result, **options)

    @property
    def client(self) -> Client:
        """The client, for direct use: everything buffered is stored first."""
        commit.before_raw_read()
        return self._client

    @cached_property
    def _client(self) -> Client:
        return self._create_client(**self.connparams)


class SentinelBackend(Backend, CelerysSentinelBackend):
    """The same on the server that sentinels call the primary."""
