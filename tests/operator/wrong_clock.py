"""A worker that imports this has a clock that began in 1970. Its broker restores messages after a second."""

from celery.signals import celeryd_after_setup

from celery_kit.observe import vitals


@celeryd_after_setup.connect(weak=False)
def _wrong(conf: dict[str, dict[str, float]], **_: object) -> None:
    conf["broker_transport_options"]["visibility_timeout"] = 1
    vitals.clock = lambda: 1.0
