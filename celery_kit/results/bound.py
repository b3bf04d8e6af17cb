"""Where results are signed: one that was stored for another task, or another group, is refused.

A signature covers a result with its task's id and state. Whoever can write to the results server could store the signed result
of one task under the key of another; here the ids are compared. Source: celery/backends/base.py 5.7.0.
"""

from celery import states
from celery.exceptions import SecurityError
from kombu.exceptions import DecodeError

from celery_kit.base.types import Headers, ResultBackend


def bind(backend: ResultBackend) -> None:
    """Have a result backend that reads by keys raise SecurityError for a result of another id than the key's."""
    one, many, group = (getattr(backend, name, None) for name in ("_get_task_meta_for", "_mget_to_results", "_restore_group"))
    if not (one and many and group):  # rpc: an answer is handed to those who wait for the id that is in it
        return

    def _get_task_meta_for(task_id: str) -> Headers:
        try:
            meta: Headers = one(task_id)
        except (DecodeError, KeyError, TypeError) as error:
            raise SecurityError(f"what is stored for {task_id} is no signed result: {error}") from error
        if meta.keys() != {"status", "result"} or meta["status"] != states.PENDING:  # so Celery describes what is not there
            _check(meta.get("task_id"), task_id)
        return meta

    def _mget_to_results(*args: object, **options: object) -> dict[str, Headers]:
        found: dict[str, Headers] = many(*args, **options)
        for task_id, meta in found.items():
            _check(meta.get("task_id"), task_id)
        return found

    def _restore_group(group_id: str) -> Headers | None:
        meta: Headers | None = group(group_id)
        if meta:
            _check(getattr(meta["result"], "id", None), group_id)
        return meta

    vars(backend).update(
        _get_task_meta_for=_get_task_meta_for, _mget_to_results=_mget_to_results, _restore_group=_restore_group
    )


def _check(signed: object, wanted: str) -> None:
    if signed != wanted:
        raise SecurityError(f"the result that is stored for {wanted} was signed for {signed}")
