"""Annotations with Celery's classes: fix generic_classes."""

from typing import Any, get_origin

from celery import Task
from celery.result import AsyncResult

from celery_kit.fixes.generic_classes import generic_classes


def test_celerys_classes_take_their_types() -> None:
    generic_classes()
    assert [get_origin(alias) for alias in (Task[Any, Any], AsyncResult[int])] == [Task, AsyncResult]
