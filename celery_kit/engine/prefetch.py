"""How many messages a worker prefetches beyond Celery's prefetch count: as many as it does within HORIZON seconds.

So slow tasks are prefetched as by plain Celery, and quick ones in batches, which share a round trip, a write of results and an
acknowledgement. Messages that no task has started on within STALLED seconds are requeued: slow tasks came after quick ones, and
another worker may be idle. If the user sets a prefetch count, by WORKER_PREFETCH_MULTIPLIER or on the command line, nothing
more is prefetched (`take_ahead` of the brokers' transport options).
"""

from time import monotonic
from typing import Any

import click
from click.core import ParameterSource

from celery_kit.base.conf import transport_options
from celery_kit.base.signals import celeryd_init

#: Seconds of work that a worker may prefetch beyond its prefetch count.
HORIZON = 0.1
#: The largest number of such messages.
MOST = 100
#: Seconds without a free slot after which prefetched messages are requeued.
STALLED = 1.0


class Throughput:
    """How many messages the worker may prefetch beyond its prefetch count, by its recent throughput."""

    def __init__(self) -> None:
        self.ahead = 0
        self._rate = 0.0
        self._done = 0
        self._since = monotonic()

    def done(self) -> None:
        self._done += 1

    def update(self, now: float) -> None:
        span = now - self._since
        if span < HORIZON / 2:
            return
        rate = self._done / span
        # A lower rate counts at once, a higher one by half: slow tasks may end together by chance.
        self._rate = min(rate, (self._rate + rate) / 2)
        self.ahead = min(MOST, int(self._rate * HORIZON))
        self._done, self._since = 0, now


def connect() -> None:
    """Have workers keep to a prefetch count of their command line exactly."""
    celeryd_init.connect(_to_the_letter, weak=False)


def _to_the_letter(conf: Any, options: dict[str, Any], **_: Any) -> None:
    if _named(options) and "take_ahead" in transport_options(conf):
        conf.broker_transport_options = {**conf.broker_transport_options, "take_ahead": False}


def _named(options: dict[str, Any]) -> bool:
    """Whether the user set a prefetch count. Celery's command line takes it from the settings otherwise."""
    context = click.get_current_context(silent=True)
    if context and (source := context.get_parameter_source("prefetch_multiplier")):
        return source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return bool(options.get("prefetch_multiplier"))
