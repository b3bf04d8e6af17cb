"""Celery's classes that are generic in its stubs."""

from types import GenericAlias

from celery.app.task import Task
from celery.result import AsyncResult


def generic_classes() -> None:
    """Let annotations such as `Task[Any, Any]` be evaluated at import without a TypeError, as from Celery 5.7 on."""
    for kind in (Task, AsyncResult):
        setattr(kind, "__class_getitem__", classmethod(GenericAlias))  # noqa: B010  # the stubs have it as a method
