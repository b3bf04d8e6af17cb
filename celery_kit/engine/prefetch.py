"""How many messages a worker prefetches beyond Celery's prefetch count: as many as it processes within HORIZON seconds.

So slow tasks are prefetched as by plain Celery. Quick tasks are prefetched in batches, which share a round trip, a write of
results and an acknowledgement. Messages that no task has started on within STALLED seconds are requeued: slow tasks came after
quick ones, and another worker may be idle. If the user sets a prefetch count, by WORKER_PREFETCH_MULTIPLIER or on the command
line, nothing more is prefetched (`take_ahead` of the brokers' transport options).
"""

from time import monotonic

import click
from celery.app.utils import Settings
from click.core import ParameterSource

from celery_kit.base.conf import transport_options
from celery_kit.base.signals import celeryd_init
from celery_kit.base.types import Options

#: Seconds of work that a worker may prefetch beyond its prefetch count.
HORIZON = 0.1
#: The largest number of such messages.
MOST = 100
#: Seconds without a free slot after which prefetched messages are requeued.
STALLED = 1.0


class Throughput:
    """A worker's recent throughput. `ahead`: how many messages it may prefetch beyond its prefetch count."""

    def __init__(self) -> None:
        self.ahead = 0
        self._rate = 0.0  # tasks/s
        self._done = 0
        self._since = monotonic()

    def done(self) -> None:
        """Count a task that has ended."""
        self._done += 1

    def update(self, now: float) -> None:
        """Compute `ahead` again, at most once in half of HORIZON. `now`: seconds of the monotonic clock."""
        span = now - self._since
        if span < HORIZON / 2:
            return
        rate = self._done / span
        # A lower rate counts at once, a higher one by half: slow tasks may end together by chance.
        self._rate = min(rate, (self._rate + rate) / 2)
        self.ahead = min(MOST, int(self._rate * HORIZON))
        self._done, self._since = 0, now


def connect() -> None:
    """Have workers prefetch no more than a prefetch count that their command line sets."""
    celeryd_init.connect(_keep_to_given_count, weak=False)


def _keep_to_given_count(conf: Settings, options: Options, **_: object) -> None:
    if _is_given(options) and "take_ahead" in transport_options(conf):
        conf.broker_transport_options = {**conf.broker_transport_options, "take_ahead": False}


def _is_given(options: Options) -> bool:
    """Whether the user set a prefetch count. Celery's command line takes it from the settings otherwise."""
    context = click.get_current_context(silent=True)
    if context and (source := context.get_parameter_source("prefetch_multiplier")):
        return source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return bool(options.get("prefetch_multiplier"))
