"""Messages and commands: what they do to a running worker, its slots, its memory and its log."""

import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

from celery import Celery
from redis import Redis

from celery_kit.operate.look.dead import each, letters
from tests.harness.waiting import until
from tests.security.beside import MESSAGES, PICKLE, content, header
from tests.security.checks.contract import KIT, AbsentError, Check, Plant, Subject, logs, worker
from tests.security.hostile import Hostile, body, deep, good
from tests.security.test_containers import Running, docker
from tests.security.test_control import broadcast

TASK = "workflows.count"
#: How often a message is sent - as often as a worker has slots -, its canaries, and the seconds for these.
COPIES, CANARIES, SECONDS = 2, 4, 12
#: The memory that a worker may take more, in bytes.
MORE = 100_000_000


def _of(one: Running) -> tuple[str, bool]:
    """When a container was started, and whether it runs."""
    started, runs = docker("inspect", "--format", "{{.State.StartedAt}} {{.State.Running}}", one.name).split()
    return started, runs == "true"


def _peak(one: Running) -> int:
    """The most memory that one of its processes has had, in bytes."""
    lines = one.sh("cat /proc/[0-9]*/status 2>/dev/null | grep VmHWM").splitlines()
    return max((1024 * int(line.split()[1]) for line in lines), default=0)


def answered(subject: Subject, app: Celery, seconds: float = SECONDS) -> int:
    """How many of some ordinary tasks have a result in time."""
    sent = [app.send_task(TASK, [[], "canary"], queue=subject.queue) for _ in range(CANARIES)]
    end = time.monotonic() + seconds
    while (found := sum(one.ready() for one in sent)) < CANARIES and time.monotonic() < end:
        time.sleep(0.2)  # between two looks
        if not _of(subject.service("worker"))[1]:
            break
    return found


def mended(subject: Subject, app: Celery) -> None:
    """Empty the queue, and start the worker again, for the next attempt."""
    one = subject.service("worker")
    docker("stop", "--time", "1", one.name)
    if subject.broker == "redis":
        Redis.from_url(subject.urls["CELERY_BROKER_URL"]).flushdb()
    else:
        docker("exec", subject.service("broker").name, "rabbitmqctl", "purge_queue", subject.queue)
    docker("start", one.name)
    until("the worker is there again", lambda: app.control.ping(timeout=1), 60)


def fresh(subject: Subject) -> Celery:
    """The producer, with no dead letter left of an earlier attempt."""
    app = subject.client()
    if subject.side == KIT:
        each(app, lambda _: "drop")
    return app


def send(subject: Subject, make: Callable[[], Hostile], copies: int) -> None:
    """Send it. Raises AbsentError if the broker has no form for it."""
    if not subject.target.send(subject.queue, iter([make() for _ in range(copies)])):
        raise AbsentError("the broker has no form for it")


def hurts(make: Callable[[], Hostile]) -> Callable[[Subject], list[str]]:
    """An attempt: the worker ends, does not take tasks any more, loses some, or takes much memory."""

    def attempt(subject: Subject) -> list[str]:
        app, one = fresh(subject), subject.service("worker")
        before, memory = _of(one), _peak(one)
        send(subject, make, COPIES)
        done = answered(subject, app)
        after, more = _of(one), _peak(one) - memory
        found = ["the worker ended"] if after != before else []
        found += [f"{CANARIES - done} of {CANARIES} tasks stuck"] if done < CANARIES and not found else []
        found += [f"{more / 1e6:,.0f} MB of memory"] if more > MORE else []
        if found and subject.side != KIT:
            mended(subject, app)
        return found

    return attempt


def vanishes(make: Callable[[], Hostile]) -> Callable[[Subject], str]:
    """An attempt: the message is acknowledged, and neither ran nor is anything known of it by its id, or as a dead letter."""

    def attempt(subject: Subject) -> str:
        app, task_id = fresh(subject), f"hostile-{uuid4().hex}"

        def named() -> Hostile:
            one = make()
            one.headers["id"] = task_id
            return one

        send(subject, named, 1)
        done = answered(subject, app)
        if done < CANARIES:
            mended(subject, app)
            return "the worker ended, or took no more tasks"
        if subject.side == KIT:
            with suppress(AssertionError):
                until("a dead letter", lambda: letters(app), 10, every=0.5)
            if letters(app):
                return ""
        return "" if app.AsyncResult(task_id).state != "PENDING" else "nothing is known of it"

    return attempt


def runs_code(subject: Subject) -> str:
    """An attempt: a pickle as a body."""
    app, mark = fresh(subject), f"/tmp/ran-{uuid4().hex[:8]}"
    pickled = PICKLE.replace(b'echo ran > "$RUNS.code"', f"touch {mark}".encode())
    kind = "application/x-python-serialize"
    send(subject, lambda: Hostile("", good(TASK), {}, pickled, kind, "binary"), 1)
    answered(subject, app)
    return subject.service("worker").sh(f"ls {mark} 2>/dev/null")


def in_log(text: str) -> Callable[[Subject], bool]:
    """An attempt: the log has, as they are, characters of a message's id."""

    def attempt(subject: Subject) -> bool:
        app, token = fresh(subject), uuid4().hex[:12]
        send(subject, header(task=TASK, id=f"x{text}{token}"), 1)
        answered(subject, app)
        return f"{text}{token}" in logs(subject.service("worker"))

    return attempt


def raw_command(*texts: str) -> Callable[[Subject], list[str]]:
    """An attempt: bytes on the control queue end a worker, break its connection, or make it deaf."""

    def attempt(subject: Subject) -> list[str]:
        app, one = fresh(subject), subject.service("worker")
        before, said = _of(one), len(logs(one))
        for text in texts:
            with suppress(AssertionError):  # nobody listens any more
                broadcast(subject.target, text.encode())
        done = answered(subject, app)
        found = ["the worker ended"] if _of(one) != before else []
        found += ["it lost its connection"] if "onnection to broker lost" in logs(one)[said:] else []
        found += [] if done == CANARIES or found else ["it took no more tasks"]
        with suppress(AssertionError):
            if not found and not until("it answers", lambda: app.control.ping(timeout=2), 10):
                found.append("it answers no command")
        if found and subject.side != KIT:
            mended(subject, app)
        return found

    return attempt


def consumes(queue: str) -> Callable[[Subject], str]:
    """An attempt: a command has workers consume a queue that holds no tasks of theirs."""

    def attempt(subject: Subject) -> str:
        app = fresh(subject)
        answers = app.control.broadcast("add_consumer", {"queue": queue}, reply=True, timeout=3) or []
        taken = [name for one in answers for name, said in one.items() if "ok" in said]
        if taken:
            app.control.cancel_consumer(queue)
        return f"it consumes {queue}" if taken else ""

    return attempt


def held_up(subject: Subject) -> str:
    """An attempt: tasks wait until the states of 40,000 revoked ids are stored."""
    app, ids = fresh(subject), [f"revoked-{uuid4().hex}" for _ in range(40_000)]
    if answered(subject, app) < CANARIES:
        return "it takes no tasks"
    app.control.revoke(ids)
    sent = app.send_task(TASK, [[], "canary"], queue=subject.queue)
    sent.get(timeout=60)
    with suppress(AssertionError):
        until("it knows them", lambda: "revoked-" in logs(subject.service("worker")), 20, every=0.5)
    app.send_task(TASK, [[], "canary"], queue=subject.queue).get(timeout=60)
    states = {str(app.AsyncResult(one).state) for one in ids[-3:]}
    return "all 40,000 states came first" if states == {"REVOKED"} else ""


def shows_passwords(subject: Subject) -> list[str]:
    """An attempt: `inspect conf` shows the app's password."""
    app = fresh(subject)
    said = str(app.control.inspect(timeout=3).conf(with_defaults=True))
    return [f"that of {name}" for name, (_, secret) in subject.accounts.items() if f":{secret}@" in said]


REDIS, RABBITMQ = ("redis",), ("rabbitmq",)
#: Those of MESSAGES that end a worker of plain Celery, take its slots, or fill its memory; the brokers that have such ones.
HURTING: dict[str, tuple[str, ...]] = {
    "`stamped_headers: 1`": (),
    "`id: [[\"x\"]]`": (),
    "an empty ETA": (),
    "a header 10,000 deep": REDIS,
    "an AMQP table 2,000 deep": RABBITMQ,
    "`{\"__type__\": \"datetime\", \"__value__\": 1}`": REDIS,
    "a delivery tag that is a lone surrogate": REDIS,
    "300 kB of zlib that become 300 MB": (),
    "bzip2 of 200 MB": (),
    "no message": REDIS,
}  # fmt: skip
#: Bodies and headers that plain Celery drops.
VANISHING: dict[str, Callable[[], Hostile]] = {
    "a body that is a text of three characters": content(b'"0e9"'),
    "a body 5,000 deep": MESSAGES["a body 5,000 deep"],
    "a body that is no JSON": content(b"{"),
    "a body that is accepted by nobody": lambda: Hostile("", good(TASK), {}, body(), "application/x-no", "utf-8"),
    "a body that is not what its header compression says": content(b"no such data", compression="zlib"),
    "a body that is cut off": content(zlib.compress(body())[:-9], compression="zlib"),
    "a body whose text is no UTF-8": content(b'[["\xff\xfe"], {}, {}]'),
    "arguments that are no list": content(body(args={"a": 1}, kwargs=[])),
}  # fmt: skip
UNHIDDEN = "import celery.app.utils as utils\nutils.filter_hidden_settings = lambda conf: conf\n"
#: Without the gate alone what Celery itself cannot use is dead-lettered all the same. Only the size has one guard.
BOUND_OFF = "import celery_kit.base.sizes as sizes\nsizes.too_large = lambda *_, **__: None\n"
NO_BOUND = Plant("a worker without a bound for sizes", worker(BOUND_OFF, MESSAGE_MOST="1000000000"))


def _as_ours(make: Callable[[], Hostile]) -> Callable[[], Hostile]:
    """A message of MESSAGES, for a task that both stacks have."""

    def made() -> Hostile:
        one = make()
        if one.raw is not None:
            one.raw = one.raw.replace(b"security.touch", TASK.encode())
        elif isinstance(one.headers, dict) and one.headers.get("task") == "security.touch":
            one.headers["task"] = TASK
        return one

    return made


ROWS = (
    *(
        Check(
            "messages",
            f"it ends a worker, takes its slots or fills its memory: {name}",
            hurts(_as_ours(MESSAGES[name])),
            NO_BOUND if "of zlib" in name or "bzip2" in name else None,
            brokers,
        )
        for name, brokers in HURTING.items()
    ),
    *(
        Check("messages", f"it is acknowledged, and nothing is known of it: {name}", vanishes(_as_ours(make)))
        for name, make in VANISHING.items()
    ),
    Check(
        "messages",
        "a pickle runs code in a worker",
        runs_code,
        Plant("a worker that accepts pickle", worker(ACCEPT_CONTENT="json,pickle")),
    ),
    Check("messages", "an id writes lines of its own into the log", in_log("\nforged: ")),
    Check("messages", "an id sends escapes to the terminal of who reads the log", in_log("\x1b[31m")),
    Check(
        "control",
        "what is no command ends a worker or makes it deaf",
        raw_command("x", "", "{}", "5", "null", "[[]]", '{"method": 5}'),
    ),
    Check("control", "one that is nested 100,000 deep ends a worker or makes it deaf", raw_command(deep(100_000))),
    Check("control", "a command has workers consume dead letters", consumes("celery.dead")),
    Check("control", "a command has workers consume dead letters of failed tasks", consumes("celery.dead.failed")),
    Check("control", "revoking many ids holds up tasks", held_up),
    Check(
        "control",
        "`inspect conf` shows the app's password",
        shows_passwords,
        Plant("a worker that hides no setting", worker(UNHIDDEN)),
    ),
)
