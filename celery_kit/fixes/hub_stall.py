"""The worker's loop sleeps although it has something to do.

A callback that another callback hands to kombu 5.7.0's Hub.call_soon, in the loop's own thread, waits until the next poll ends:
up to a second without traffic. With few messages in flight the next one often comes only after such a callback, an
acknowledgement for one, so a worker drops at random to a fraction of its rate. Source: kombu/asynchronous/hub.py, create_loop;
kombu PR #1587.

Closed by polling without a wait while callbacks are ready. Can go when
tests/unit/fixes/test_hub_stall.py passes without it.
"""

from typing import Any

from kombu.asynchronous.hub import Hub

from celery_kit.base.signals import celeryd_init


def connect() -> None:
    """Have every worker's loop look before it sleeps."""
    celeryd_init.connect(patch, weak=False)


def patch(**_: Any) -> None:
    """Patch kombu's loop, once."""
    create: Any = Hub._create_poller
    if create.__module__ == __name__:
        return

    def _create_poller(self: Any) -> None:
        create(self)
        poll = self._poller.poll
        self._poller.poll = lambda timeout: poll(0 if self._ready else timeout)

    Hub._create_poller = _create_poller  # type: ignore[method-assign]
