"""Results as messages, back to the process that sent the task; no results server. Only that process can read them."""

from app.backends.contract import Backend

backend = Backend(
    name="rpc",
    schemes=("rpc",),
    url=lambda _environ, _broker: "rpc://",
    # Durable, so that a restart of the broker does not lose an answer.
    settings=lambda _profile: {"result_persistent": True},
    has_server=False,
    read_elsewhere=False,
    chords=False,
)
