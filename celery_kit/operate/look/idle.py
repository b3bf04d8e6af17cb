"""Take an idle worker out of use, before its process is stopped: `python -m celery_kit.operate.look.idle NODE QUEUE ...`.

It stops consuming. A worker that holds a task nevertheless, because it was sent one at this moment, consumes again, and the
exit code is 1. Celery's remote control does both: https://docs.celeryq.dev/en/stable/userguide/workers.html#queues
"""

import sys
import time
from collections.abc import Sequence

from celery_kit.operate.arguments import Parser
from celery_kit.operate.target import app

#: Seconds that a worker may take for an answer, and between the two looks at what it holds.
PATIENCE, PAUSE = 2.0, 1.0


def retire(node: str, queues: Sequence[str]) -> bool:
    """Have a worker consume nothing, by its node name. Returns whether it holds no task then; otherwise it consumes `queues`,
    also those that an earlier call has taken away and could not give back.
    """
    done = False
    try:
        if _holds_nothing(node):
            for queue in queues:
                app.control.cancel_consumer(queue, destination=[node], reply=True, timeout=PATIENCE)
            if _holds_nothing(node):
                time.sleep(PAUSE)  # a message may have been on its way
                done = _holds_nothing(node)
    finally:
        if not done:
            for queue in queues:
                app.control.add_consumer(queue, destination=[node], reply=True, timeout=PATIENCE)
    return done


def _holds_nothing(node: str) -> bool:
    """Whether a worker answers that no task runs there, waits for a place, or waits for its ETA."""
    asking = app.control.inspect([node], timeout=PATIENCE)
    return all((ask() or {}).get(node) == [] for ask in (asking.active, asking.reserved, asking.scheduled))


def main() -> None:
    """Take the worker that the command line names out of use."""
    parser = Parser(description="Have a worker that holds no task consume nothing.")
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("queues", metavar="QUEUE", nargs="*", help="those that it consumes")
    given = parser.parse_args()
    sys.exit(not retire(given.node, given.queues))


if __name__ == "__main__":
    main()
