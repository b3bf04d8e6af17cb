"""Results as messages, back to the process that sent the task; no results server. Only that process can read them."""

from app.backends.contract import Backend
from app.limits import DOCS, Limit

NO_CHORDS = Limit("cannot", "sending a chord raises NotImplementedError", f"{DOCS}/userguide/canvas.html#chords")

backend = Backend(
    name="rpc",
    schemes=("rpc",),
    url=lambda _environ, _broker: "rpc://",
    # Durable, so that a restart of the broker does not lose an answer.
    settings=lambda _profile: {"result_persistent": True},
    has_server=False,
    read_elsewhere=False,
    chords=False,
    limits={
        "result_is_read_elsewhere": Limit(
            "cannot",
            "another process sees PENDING; the command line refuses and says why",
            f"{DOCS}/userguide/tasks.html#rpc-result-backend-rabbitmq-qpid",
        ),
        "workflow_runs": NO_CHORDS,
        "chord": NO_CHORDS,
    },
)
