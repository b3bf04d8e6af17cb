"""ENGINE=fast: the rooms' own transports and result backends take the place of Celery's, for the same messages and results."""

from typing import Any

from celery.app.backends import BACKEND_ALIASES
from kombu.transport import TRANSPORT_ALIASES

from app.profile import Profile


def settings(profile: Profile) -> dict[str, Any]:
    """Have kombu and Celery take the rooms' fast classes for their schemes; gives the settings that go with them."""
    TRANSPORT_ALIASES.update(profile.broker.fast_transports)
    if profile.backend.fast_class:
        BACKEND_ALIASES.update(dict.fromkeys(profile.backend.schemes, profile.backend.fast_class))
    return {
        # One client for all threads or greenlets of a process, where the backend is fit for it (not rpc): Celery's default is
        # one each, and on green pools a connection for every task.
        "result_backend_thread_safe": profile.backend.thread_safe,
    }
