"""ENGINE=fast: the rooms' own transports and result backends take the place of Celery's, for the same messages and results;
in the apps that have chosen it, and in no other of the process.
"""

from functools import cache
from typing import Any

from celery_kit.brokers import BROKERS
from celery_kit.profile import Profile
from celery_kit.results import BACKENDS


def settings(profile: Profile) -> dict[str, Any]:
    """The settings that go with the fast classes."""
    return {
        # One client for all threads or greenlets of a process, where the backend is fit for it (not rpc): Celery's default is
        # one each, and on green pools a connection for every task.
        "result_backend_thread_safe": profile.backend.thread_safe,
    }


@cache
def transports(chosen: str) -> dict[str, str]:
    """By scheme, the rooms' transports that take the place of kombu's."""
    found: dict[str, str] = {}
    for broker in BROKERS.values():
        found |= dict.fromkeys(broker.schemes, broker.transport) if broker.transport else {}
        found |= broker.fast_transports if chosen == "fast" else {}
    return found


@cache
def result_backends(chosen: str) -> dict[str, str]:
    """By scheme, the rooms' result backends that take the place of Celery's."""
    rooms = [backend for backend in BACKENDS.values() if backend.fast_class and chosen == "fast"]
    return {scheme: str(backend.fast_class) for backend in rooms for scheme in backend.schemes}
