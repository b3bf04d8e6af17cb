"""How far ahead a worker takes messages: what it does within HORIZON seconds, beyond Celery's prefetch count.

So slow tasks are prefetched as plain Celery does, and quick ones in batches: a round trip, a result's write and an
acknowledgement are for many. What was taken so and not come to within STALLED seconds goes back to its queue: slow tasks came
after quick ones, and another worker may be idle. A prefetch count that the user names, by WORKER_PREFETCH_MULTIPLIER or to
`celery worker`, holds to the letter: then nothing is taken ahead (`take_ahead`, of the brokers' transport options).
"""

from time import monotonic
from typing import Any

import click
from click.core import ParameterSource

from celery_kit.base.conf import transport_options
from celery_kit.base.signals import celeryd_init

#: Seconds of work that a worker may hold beyond its prefetch count.
HORIZON = 0.1
#: Messages that it may hold beyond it at most.
MOST = 100
#: Seconds without a free place after which messages that were taken for a quicker pace go back.
STALLED = 1.0


class Pace:
    """How many messages the worker may hold beyond its prefetch count, by what it has done of late."""

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
        # Slower counts at once, quicker by half: a burst of slow tasks that end together is no pace.
        self._rate = min(rate, (self._rate + rate) / 2)
        self.ahead = min(MOST, int(self._rate * HORIZON))
        self._done, self._since = 0, now


def connect() -> None:
    """Have workers keep to a prefetch count of their command line."""
    celeryd_init.connect(_to_the_letter, weak=False)


def _to_the_letter(conf: Any, options: dict[str, Any], **_: Any) -> None:
    if _named(options) and "take_ahead" in transport_options(conf):
        conf.broker_transport_options = {**conf.broker_transport_options, "take_ahead": False}


def _named(options: dict[str, Any]) -> bool:
    """The user named a prefetch count. Celery's command line fills it in from the settings where nobody did."""
    context = click.get_current_context(silent=True)
    if context and (source := context.get_parameter_source("prefetch_multiplier")):
        return source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    return bool(options.get("prefetch_multiplier"))
