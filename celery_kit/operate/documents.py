"""THE table of what commands print with JSON=1: one document each. Names stay; later versions may add some. docs/json.md."""

from collections.abc import Mapping

_STATE = {
    "id": "the task's id",
    "state": "Celery's word",
    "value": "what it returned; null: nothing yet",
    "error": "its exception, or null",
    "traceback": "its traceback, or null",
    "done": "when it ended, in ISO 8601, UTC; null: not yet",
    "progress": "what the running task has reported, or null",
}
_SERVER = (
    "answers (boolean), why (not; text or null), url, and if it answers: product, version, memory (bytes), keys, notes, delayed"
)

#: By command, the fields of its document.
DOCUMENTS: Mapping[str, Mapping[str, str]] = {
    "status": {
        "broker": _SERVER,
        "results": "the same of the results server; null: there is none",
        "queues": "each with name, waiting, unacknowledged, consumers, oldest (seconds), paused; null: the broker does not say",
        "held": "unacknowledged messages: holder, number, dead (seconds, or null), queue, task, id",
        "groups": "worker groups, as in the table of groups, with consuming (workers) and paused",
        "workers": "each with name, state (words), group, pool, version, concurrency, consuming and paused (queues), active, "
        "reserved, scheduled, processed (tasks), memory (bytes)",
        "beats": "each with state, running, leads (null: it is the only one), and entries: name, last, next (ISO 8601), runs",
        "tasks": "names of the tasks that workers know, 100 of a worker at most",
        "unasked": "why the workers could not be asked, or null",
    },
    "doctor": {
        "stack": "whether a stack runs",
        "checks": "how many checks were made",
        "faults": "each with what (is wrong) and fix; exit code 1 if there are any",
        "notes": "what is no fault: each with what and fix",
    },
    "dead": {
        "done": "listed, sent back or dropped",
        "letters": "each with id, task, queue, reason, when (ISO 8601, UTC), deliveries, kind, attempts, worker, traceback",
    },
    "result": _STATE,
    "send": {"sent": "each task with id and, with WAIT=, result: the document of `result`"},
    "ps": {"processes": "each with name, role, state (words), running, worker (its node name) and group"},
    "urls": {
        "CELERY_BROKER_URL": "with the password",
        "CELERY_RESULT_BACKEND": "with the password",
        "MAIL_URL": "the mail catcher's, with the password, and further ones of what the stack has",
    },
    "pause": {
        "queues": "each with name, paused (now), changed (by this command) and waiting",
        "workers": "those that have noticed: worker, paused (its queues that are), held (tasks)",
    },
    "contract": {
        "base": "the git ref",
        "tasks": "how many were compared",
        "findings": "each with way, task, what, do, note (true: nothing breaks); exit code 1 if one breaks",
    },
    "k8s-check": {"folder": "as given", "findings": "each with name and what; exit code 1 if there are any"},
    "stack": {
        "stack": "its name in the swarm; with LOOK=1 alone",
        "services": "each with name, running and wanted (containers), nodes, pool and queues",
    },
}
#: Commands whose document is that of another.
SAME = {"resume": "pause"}
#: The other commands, and why they print none.
WITHOUT = {
    "top": "live, for a terminal; `status` has the document",
    "logs": "what the processes write; LOG_FORMAT=json has them write JSON",
    "balance": "goes on until Ctrl-C, and says what it does",
    "plan": "an estimate, for a person to read; the table of groups in it is TOML",
    "k8s-secrets": "prints JSON anyway: a manifest",
    **dict.fromkeys(("passwords", "certificates"), "makes new ones, or says how"),
    **dict.fromkeys(
        ("up", "down", "forward", "demo", "dev", "images", "push", "k8s", "migrate", "backup", "restore"),
        "acts; `status` or `ps` shows what came of it",
    ),
}
