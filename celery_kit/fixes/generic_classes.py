"""Celery's classes that are generic in its stubs."""

from types import GenericAlias
from typing import Any

from celery.app.task import Task
from celery.result import AsyncResult


def generic_classes() -> None:
    """Have annotations such as `Task[Any, Any]` be no TypeError at import, as from Celery 5.7 on."""
    for generic in (Task, AsyncResult):
        kind: Any = generic
        kind.__class_getitem__ = classmethod(GenericAlias)
