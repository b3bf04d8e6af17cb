"""What a running stack does now: its broker, its queue, its workers. `python -m app.status` shows it."""

from collections.abc import Mapping
from typing import Any

from app import app
from app.refusal import refuse

WAIT = 2.0  # seconds, for the workers' answers


def waiting(queue: str) -> int:
    """Messages that wait in `queue`; those that a worker holds are not counted."""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:  # no worker has declared it yet
            return 0


def workers() -> Mapping[str, Any]:
    """Statistics of each worker that answers, by node name."""
    return app.control.inspect(timeout=WAIT).stats() or {}


def main() -> None:
    queue = app.conf.task_default_queue
    try:
        print(f"broker    {app.connection().as_uri()}")
        print(f"results   {app.backend.as_uri()}")
        print(f"queue     {queue}: {waiting(queue)} waiting")
        answers = workers()
    except app.connection().connection_errors as error:
        refuse(f"the broker at {app.connection().as_uri()} cannot be reached ({error}); 'make ps' shows what runs")
    for node, stats in sorted(answers.items()):
        pool = stats["pool"]
        kind = pool["implementation"].rpartition(":")[0].rpartition(".")[2]
        done = sum(stats["total"].values())
        print(f"worker    {node}: {kind}, {pool.get('max-concurrency', 1)} at once, {done} tasks so far")
    if not answers:
        print(f"worker    none answered within {WAIT:g} s (a solo worker answers only between tasks)")


if __name__ == "__main__":
    main()
