"""What a worker reports about its pool."""

from tests.compat.side import app


def size(pid: int) -> int:
    """The concurrency of the worker with that process id."""
    answers = app.control.inspect(timeout=5).stats() or {}
    (found,) = (stats["pool"]["max-concurrency"] for stats in answers.values() if stats["pid"] == pid)
    return int(found)
