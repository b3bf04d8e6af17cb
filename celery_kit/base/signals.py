"""Celery's signals of a worker and of beat that begin, of the kit's apps alone: another app of the process has its own."""

from typing import Any
from weakref import WeakSet

from celery import Celery, signals
from celery.utils.dispatch import Signal

#: As Celery's of that name.
celeryd_init = Signal(name="celeryd_init", providing_args=["instance", "conf", "options"])
worker_init = Signal(name="worker_init")
celeryd_after_setup = Signal(name="celeryd_after_setup", providing_args=["instance", "conf"])
beat_init = Signal(name="beat_init")

_apps: "WeakSet[Celery]" = WeakSet()


def connect(app: Celery) -> None:
    """Have the workers and the beat of `app` send them."""
    _apps.add(app)
    signals.celeryd_init.connect(_worker, weak=False)
    signals.worker_init.connect(_before_its_pool, weak=False)
    signals.celeryd_after_setup.connect(_logging, weak=False)
    signals.beat_init.connect(_beat, weak=False)


def _worker(sender: Any, instance: Any, **given: Any) -> None:
    if is_the_kits(instance.app):
        celeryd_init.send(sender=sender, instance=instance, conf=given["conf"], options=given["options"])


def _before_its_pool(sender: Any, **_: Any) -> None:
    if is_the_kits(sender.app):
        worker_init.send(sender=sender)


def _logging(sender: Any, instance: Any, conf: Any, **_: Any) -> None:
    if is_the_kits(instance.app):
        celeryd_after_setup.send(sender=sender, instance=instance, conf=conf)


def _beat(sender: Any, **_: Any) -> None:
    if is_the_kits(sender.app):
        beat_init.send(sender=sender)


def is_the_kits(app: Any) -> bool:
    """Whether this process has made `app`, or what it is a proxy for, an app of the kit."""
    return any(app == one for one in _apps)
