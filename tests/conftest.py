"""Marks for each axis, and a Ctrl-C that leaves nothing running, whichever signal it comes as."""

import signal

import pytest

from tests.harness.combinations import COMBINATIONS, marks


def pytest_configure(config: pytest.Config) -> None:
    for name in sorted({name for one in COMBINATIONS for name in marks(one)}):
        config.addinivalue_line("markers", f"{name}: combinations with {name}")
    config.addinivalue_line("markers", "by_kit(combinations, what): works there because the kit closes a gap of Celery's")
    config.addinivalue_line("markers", "full: not in the quick run")
    # A time limit's SIGTERM takes the containers down too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
