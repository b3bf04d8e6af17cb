"""Celery's signals at the start of a worker and of beat, for the kit's apps only. A process may have other apps."""

from weakref import WeakSet

from celery import Celery, signals
from celery.app.utils import Settings
from celery.beat import Service
from celery.utils.dispatch import Signal

from celery_kit.base.types import Options, Worker

#: Each is sent with the arguments of Celery's signal of that name.
celeryd_init = Signal(name="celeryd_init", providing_args=["instance", "conf", "options"])
worker_init = Signal(name="worker_init")
celeryd_after_setup = Signal(name="celeryd_after_setup", providing_args=["instance", "conf"])
beat_init = Signal(name="beat_init")

_apps: "WeakSet[Celery]" = WeakSet()


def connect(app: Celery) -> None:
    """Have the workers and the beat of `app` send these signals."""
    _apps.add(app)
    signals.celeryd_init.connect(_worker, weak=False)
    signals.worker_init.connect(_before_its_pool, weak=False)
    signals.celeryd_after_setup.connect(_logging, weak=False)
    signals.beat_init.connect(_beat, weak=False)


def _worker(sender: str, instance: Worker, conf: Settings, options: Options, **_: object) -> None:
    if is_the_kits(instance.app):
        celeryd_init.send(sender=sender, instance=instance, conf=conf, options=options)


def _before_its_pool(sender: Worker, **_: object) -> None:
    if is_the_kits(sender.app):
        worker_init.send(sender=sender)


def _logging(sender: str, instance: Worker, conf: Settings, **_: object) -> None:
    if is_the_kits(instance.app):
        celeryd_after_setup.send(sender=sender, instance=instance, conf=conf)


def _beat(sender: Service, **_: object) -> None:
    if is_the_kits(sender.app):
        beat_init.send(sender=sender)


def is_the_kits(app: Celery) -> bool:
    """Whether the kit is installed in `app`, or in the app that `app` is a proxy for."""
    return any(app == one for one in _apps)
