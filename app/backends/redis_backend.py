"""Celery's Redis result backend, with one round trip for a group of results in place of two or three for each.

A success is never overwritten by a late state of the same task, as in Celery's own, which asks first and writes then; here the
server does both in one step, so that two workers cannot get between each other's. Nor is an end overwritten by an earlier state
that comes late (`Write.lasting`): its sender would wait without end, as plain Celery's does for a retry that ended before it
was said to be one. It reads JSON only: where it finds a result in another serializer, or compressed, that one task is left to
Celery's way.
Source: celery/backends/redis.py, base.py (_store_result).
"""

from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from celery import states
from celery.backends import redis
from celery.exceptions import BackendStoreError
from kombu.utils.json import JSONEncoder
from redis.exceptions import NoScriptError

from app.commit import Write, commit

#: For each key: 1 stored and published, 0 kept what was there, -1 what is there is no JSON.
STORE = """
local answers = {}
for i, key in ipairs(KEYS) do
  local value, expires, lasting, answer = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), ARGV[3 * i], 1
  local old = redis.call('GET', key)
  if old then
    local ok, meta = pcall(cjson.decode, old)
    if not ok or type(meta) ~= 'table' then
      answer = -1
    elseif string.find(lasting, ' ' .. tostring(meta.status) .. ' ', 1, true) then
      answer = 0
    end
  end
  if answer == 1 then
    if expires > 0 then
      redis.call('SET', key, value, 'EX', expires)
    else
      redis.call('SET', key, value)
    end
    redis.call('PUBLISH', key, value)
  end
  answers[i] = answer
end
return answers
"""


to_json = JSONEncoder().encode


def _made(write: Write) -> bytes | str:
    return write.value() if callable(write.value) else write.value


RedisBackend: Any = redis.RedisBackend  # celery-types know little of it


class Backend(RedisBackend):  # type: ignore[misc]
    """See the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sha = ""
        self._extended = bool(self.app.conf.find_value_for_key("extended", "result"))

    def store_group(self, writes: list[Write]) -> None:
        """Store states in one round trip. Raises redis-py's errors; calling it again then does no harm."""
        for write, answer in zip(writes, self._evaluate(writes), strict=True):
            if answer < 0:
                self._store_by_hand(write)

    def _evaluate(self, writes: list[Write]) -> list[int]:
        keys = [write.key for write in writes]
        arguments = [part for write in writes for part in (_made(write), write.expires, f" {' '.join(write.lasting)} ")]
        with suppress(NoScriptError):
            if self._sha:
                return list(self.client.evalsha(self._sha, len(keys), *keys, *arguments))
        self._sha = self.client.script_load(STORE)
        return list(self.client.evalsha(self._sha, len(keys), *keys, *arguments))

    def _store_by_hand(self, write: Write) -> None:
        if self.decode_result(self.client.get(write.key))["status"] not in write.lasting:
            self._set(write.key, _made(write), write.expires)

    def store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        if not commit.takes(self.app, task_id, state, request):
            return super().store_result(task_id, result, state, traceback, request=request, **options)
        result = self.encode_result(result, state)
        make = partial(self._value, task_id, result, state, traceback, request)
        value = make if state == states.STARTED else make()
        # The key as get_key_for_task makes it, for an id that is text as all are in a request.
        commit.result(Write(self.task_keyprefix + task_id.encode(), value, self.expires or 0, state))
        return result

    def _store_result(
        self, task_id: Any, result: Any, state: str, traceback: Any = None, request: Any = None, **options: Any
    ) -> Any:
        value = self._value(task_id, result, state, traceback, request)
        expires = self.failure_expires if state == states.FAILURE else self.expires
        write = Write(self.get_key_for_task(task_id), value, expires or 0, state)
        if commit.running:
            commit.result(write)
            commit.flush()
        else:
            self.store_group([write])
        return result

    def _value(self, task_id: Any, result: Any, state: str, traceback: Any, request: Any) -> bytes | str:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id.decode() if isinstance(task_id, bytes) else task_id
        value: bytes | str = self.encode(meta)
        if len(value) > self._MAX_STR_VALUE_SIZE:
            raise BackendStoreError("value too large for Redis backend")
        return value

    def _get_result_meta(self, result: Any, state: str, traceback: Any, request: Any, *more: Any, **options: Any) -> Any:
        """Celery's own, without its lookups of settings that stay as they are: they are a third of what a result costs."""
        if self._extended or more or options:
            return super()._get_result_meta(result, state, traceback, request, *more, **options)
        meta = {
            "status": state,
            "result": result,
            "traceback": traceback,
            "children": self.current_task_children(request),
            "date_done": datetime.now(self.app.timezone).isoformat() if state in self.READY_STATES else None,
        }
        for name, kept in (("group", "group_id"), ("parent_id", "parent_id")):
            if request and (value := getattr(request, name, None)):
                meta[kept] = value
        return meta

    def _encode(self, data: Any) -> Any:
        if self.serializer == "json":
            return "application/json", "utf-8", to_json(data)
        return super()._encode(data)

    def get(self, key: Any) -> Any:
        commit.try_flush()  # what this process has said is what it reads
        return super().get(key)

    def mget(self, keys: Any) -> Any:
        commit.try_flush()
        return super().mget(keys)
