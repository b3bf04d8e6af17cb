"""`make doctor`: check the machine and the running stack, and print each fault with what to do about it.

The checks are a table of functions that take the scene and yield faults. Faults that only one product's server can have come
from that product's module (`Server.faults`), so that no check names a product.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

from celery_kit.base.facts import Member, Server
from celery_kit.base.files import private
from celery_kit.base.target import ROOT
from celery_kit.operate import groups
from celery_kit.operate.arguments import Parser, advice, standalone
from celery_kit.operate.look.status import Snapshot, snapshot
from celery_kit.operate.stacks.docker import EngineSilentError, Facts, ask, last_line, memory_used, port_holder
from celery_kit.operate.stacks.images import CODE, Code
from celery_kit.operate.stacks.ports import service_of
from celery_kit.operate.stacks.services import GROUP
from celery_kit.produce.spool import OURS

Found = Iterator[tuple[str, str]]  # what is wrong; what to do

PATIENCE = 3.0  # seconds; longer than for `make status`
#: The largest allowed difference between clocks, in seconds. Events, ETAs and expiry are wrong by the difference.
CLOCK_SECONDS = 5.0
#: Seconds after which a living worker has requeued what a dead one held.
ORPHANED = 5.0
#: The minimum of free disk space.
DISK_BYTES = 1_000_000_000
#: The minimum version of the engine's API. A health check with a start interval needs Docker 25.
API = (1, 44)
#: The largest share of its memory limit that a container may use.
MEMORY_SHARE = 0.9


@dataclass
class Scene:
    """What the checks look at. `ports`: the ports that a stack would publish, by variable; empty if a stack runs.

    `look(members, seconds)`: takes a snapshot of the servers and workers. `code`: the code in the workers' image.
    `inspected`: the stack's containers as `docker inspect` describes them; empty without containers. `folder`: that of the
    table of worker groups.
    """

    members: list[Member] = field(default_factory=list)
    inspected: list[Facts] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    stack: bool = True
    look: Callable[[list[Member], float], Snapshot] = lambda members, patience: snapshot(lambda: members, patience)
    code: tuple[Code, ...] = CODE
    folder: Path = ROOT / "app"

    @cached_property
    def now(self) -> Snapshot:
        """A snapshot of the servers and workers, taken at the first call only."""
        return self.look(self.members, PATIENCE)

    @property
    def broker(self) -> Server | None:
        """The broker, or None if it does not answer."""
        return self.now.broker if isinstance(self.now.broker, Server) else None


def engine(_: Scene) -> Found:
    """Docker's client, engine and compose plugin, for the stacks of this project."""
    if standalone() or not (ROOT / "Makefile").exists():  # another project, which starts none of these stacks
        return
    if not shutil.which("docker"):
        yield "no Docker client is installed: stacks in containers cannot start", "make engine; 'make demo' needs none"
        return
    try:
        done = ask("docker", "version", "--format", "{{.Client.APIVersion}}")
    except EngineSilentError as error:
        yield str(error), "restart it; its log says more (journalctl -u docker)"
        return
    version = re.fullmatch(r"(\d+)\.(\d+)", done.stdout.strip())
    if done.returncode or not version:
        yield f"no Docker engine answers ({last_line(done.stderr or done.stdout)})", "make engine"
    elif (int(version[1]), int(version[2])) < API:
        needed = ".".join(map(str, API))
        yield f"Docker's API is {version[0]}, the stacks need {needed}", "Docker 25 or later; unset DOCKER_API_VERSION"
    elif ask("docker", "compose", "version").returncode:
        yield "Docker has no compose plugin", "install docker-compose-plugin, or docker-compose-v2"


def packages(_: Scene) -> Found:
    """Packages whose versions are not those of the lock file. An image has no lock file, but is built from one."""
    from packaging.markers import Marker

    if standalone():  # another project, with a lock file of its own
        return
    lock = ROOT / "requirements/local.txt"
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)(?: ; (.*?))? \\$", lock.read_text() if lock.exists() else "", re.MULTILINE)
    for name, pinned, marker in pins:
        if (here := _installed(name)) != pinned and (not marker or Marker(marker).evaluate()):
            yield f"{name} is {here or 'not installed'} in {sys.prefix}, the lock says {pinned}", "rm -r .venv && make env"


def ports(scene: Scene) -> Found:
    """Ports that another program uses."""
    import socket

    for variable, number in scene.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                by = _holder(number) or "another program"
                yield f"port {number} is in use by {by}", f"free it, or put {variable}={number + 10_000} into .env"


def overcommit(scene: Scene) -> Found:
    """Memory for a server's fork: with policy 2 a large process cannot fork; with 0, the default, it needs its size in free
    memory.
    """
    setting = Path("/proc/sys/vm/overcommit_memory")
    policy = setting.read_text().strip() if setting.exists() else "1"
    needed = (scene.broker.memory or 0) if scene.stack and scene.broker else 0
    if policy == "2" or (policy == "0" and needed > _memory_available()):
        yield f"vm.overcommit_memory is {policy}: a server cannot fork to save its data", "sysctl vm.overcommit_memory=1"


def disk(_: Scene) -> Found:
    """Free disk space."""
    if (free := shutil.disk_usage(ROOT).free) < DISK_BYTES:
        yield f"only {free / 1e6:.0f} MB of disk are free: brokers stop accepting tasks", "free some; docker image prune"


def spool(_: Scene) -> Found:
    """This machine's spool. A container may have another one."""
    folder = Path(os.environ.get("SPOOL") or os.devnull)
    if folder.is_dir():
        try:
            private(folder, OURS)
        except OSError as error:
            yield f"SPOOL={folder} cannot be used: {error.strerror}", "a folder of this user's own, mode 0700"
        if bad := sorted(path.name for path in folder.glob("*.bad")):
            named = f"{', '.join(bad[:3])}{', …' if len(bad) > 3 else ''}"
            yield (
                f"{len(bad)} tasks in SPOOL={folder} could not be sent: {named}",
                f"'{advice('make', 'celery-kit send')} forward' tries again, and says why not",
            )


def broker_answers(scene: Scene) -> Found:
    """A broker that does not answer, or refuses the account."""
    if isinstance(scene.now.broker, str):
        reason = scene.now.broker
        if any(word in reason.lower() for word in ("access_refused", "auth", "noperm", "username", "403")):
            yield f"the broker refuses the account ({reason})", "correct the user and password in CELERY_BROKER_URL or .env"
        else:
            in_stack = "'make ps' shows whether it runs, 'make logs' why not; or correct CELERY_BROKER_URL"
            yield f"the broker {reason}", advice(in_stack, "start it, or correct broker_url")


def results_answer(scene: Scene) -> Found:
    """A results server that does not answer."""
    if isinstance(scene.now.results, str):
        in_stack = "'make ps' shows whether it runs; or correct CELERY_RESULT_BACKEND"
        yield f"the results server {scene.now.results}", advice(in_stack, "start it, or correct result_backend")


def servers(scene: Scene) -> Found:
    """Faults that a server's own module has found."""
    for server in (scene.now.broker, scene.now.results):
        if isinstance(server, Server):
            yield from server.faults


def workers_live(scene: Scene) -> Found:
    """Workers that are not running, or do not answer."""
    for member in scene.members:
        if member.node and not member.running:
            yield f"worker {member.node} is {member.state}", "'make logs' shows its last words, 'make up' starts it again"
        elif member.node and scene.broker and not scene.now.unasked and member.node not in scene.now.workers:
            yield f"worker {member.node} runs and does not answer", "a solo worker answers between tasks; else restart it"
    if scene.now.unasked and not (scene.broker and scene.broker.faults):  # an unavailable broker explains it
        yield (
            f"workers cannot be asked: {scene.now.unasked}",
            f"the broker's log; '{advice('make', 'celery-kit')} status' asks again",
        )
    elif scene.broker and not scene.now.unasked and not scene.now.workers and not any(one.node for one in scene.members):
        yield "no worker answers: tasks wait", advice("make up, or python -m app.worker", "celery -A … worker")


def workers_consume(scene: Scene) -> Found:
    """Workers that consume no queue."""
    for node, answer in scene.now.workers.items():
        if answer["consuming"] == [] and not answer["paused"]:
            yield (
                f"worker {node} lives and consumes nothing",
                f"celery -A app control -d {node} add_consumer QUEUE; or restart it",
            )


def queues_are_consumed(scene: Scene) -> Found:
    """Queues with tasks that no worker consumes. Nothing is known if one of the workers does not report its queues."""
    reported = [answer["consuming"] for answer in scene.now.workers.values()]
    consumed = {name for names in reported for name in names or ()}
    for queue in scene.broker.queues if scene.broker and reported and None not in reported else []:
        if queue.waiting and queue.name not in consumed and not queue.paused:
            yield (
                f"{queue.waiting} tasks wait in queue {queue.name}, which no worker consumes",
                f"start a worker with -Q {queue.name}",
            )


def orphans(scene: Scene) -> Found:
    """Messages that were delivered and that no living worker holds."""
    plain = any(answer["clock"] is None for answer in scene.now.workers.values())  # they hold messages as nobody
    for one in scene.broker.held if scene.broker else []:
        about = f"{one.number} unacknowledged messages" if one.number > 1 else f"the message of task {one.task} {one.id}"
        if one.holder and one.dead is not None and one.dead > ORPHANED:
            yield f"{about}, held by worker {one.holder}, which is dead", "start a worker: it requeues what dead workers held"
        elif not one.holder and not plain:
            yield f"{about}, which no worker holds", "redelivered after the visibility timeout (VISIBILITY_TIMEOUT)"


def redelivery(scene: Scene) -> Found:
    """Workers whose tasks may run longer than the broker waits before it redelivers them."""
    for node, answer in scene.now.workers.items():
        patience, longest = answer["visibility_timeout"], answer["longest_task"]
        if patience and longest and patience <= longest:
            yield (
                f"worker {node}: the broker redelivers a task after {patience:g} s, and a task may run for {longest:g} s",
                "make visibility_timeout longer than the longest time limit, or that limit shorter",
            )


def clocks(scene: Scene) -> Found:
    """Workers whose clock differs from this machine's."""
    for node, answer in scene.now.workers.items():
        if answer["clock"] and (apart := abs(answer["clock"] - time.time())) > CLOCK_SECONDS:
            yield f"the clock of worker {node} is {apart:.0f} s apart from this machine's", "synchronise both (NTP)"


def one_beat(scene: Scene) -> Found:
    """More than one beat that sends, in the stack or on this machine; or none."""
    beats = [member for member in scene.members if member.role == "beat" and member.running]
    alone, leading = [one for one in beats if one.leads is None], [one for one in beats if one.leads]
    if beats and not alone and not leading:
        yield f"none of {len(beats)} beats leads: no scheduled task is sent", "'make logs' says why; a beat leads within 15 s"
    elif len(leading) > 1:
        who = "; ".join(one.state for one in leading)
        yield f"{len(leading)} beats think that they lead ({who}): one of them is frozen, or cut off", "restart that one"
    number = max(len(beats), len(_beats_here())) if alone or not beats else 0
    if number > 1:
        yield f"{number} beats run: each sends every scheduled task", "stop all but one, or start them with BEATS=2"


def memory(scene: Scene) -> Found:
    """Containers that ran out of memory, or nearly so."""
    for one in scene.inspected:
        limit, name = one["HostConfig"]["Memory"], one["Name"].lstrip("/")
        if one["State"].get("OOMKilled"):
            yield f"{name} ran out of memory and was killed", "give it a larger memory limit, or WORKER_CONCURRENCY less"
        elif limit and one["State"]["Running"] and (used := memory_used(one["Id"])) > MEMORY_SHARE * limit:
            yield f"{name} uses {used / 1e6:.0f} MB of its {limit / 1e6:.0f} MB of memory", "give it a larger limit"


def images(scene: Scene) -> Found:
    """Workers whose image has other code than this machine. Compares content, because a clone gives its files new dates."""
    for one in scene.inspected:
        versioned = json.loads(one["Config"]["Labels"].get(GROUP, "{}")).get("version")
        if groups.role_of(service_of(one)) != "worker" or not one["State"]["Running"] or versioned:
            continue
        if differing := [str(code) for code in scene.code if code.differs(one["Id"])]:
            folders = f"{' and '.join(differing)} {'holds' if len(differing) == 1 else 'hold'}"
            yield f"{one['Name'].lstrip('/')} runs other code than {folders}", "make up builds the image and starts it again"


def worker_groups(scene: Scene) -> Found:
    """A table of worker groups that is wrong, or not what runs; groups with too few workers, or whose tasks wait too long."""
    running = scene.now.groups if scene.stack else None
    queues = scene.broker.queues if scene.stack and scene.broker else []
    yield from () if standalone() else groups.faults(scene.folder, running, scene.members, queues)


def notes(scene: Scene) -> Found:
    """What somebody has chosen and may have forgotten; no fault."""
    for queue in scene.broker.queues if scene.stack and scene.broker else []:
        if queue.paused:
            resume = advice(f"make resume QUEUE={queue.name}", f"celery-kit resume {queue.name}")
            yield f"queue {queue.name} is paused; {queue.waiting} tasks wait in it", resume


Check = Callable[[Scene], Found]
MACHINE: tuple[Check, ...] = (engine, packages, ports, overcommit, disk, spool, worker_groups)
STACK: tuple[Check, ...] = (
    broker_answers, results_answer, servers, workers_live, workers_consume, queues_are_consumed, orphans, redelivery, clocks,
    one_beat, memory, images,
)  # fmt: skip


def examine(scene: Scene) -> list[tuple[str, str]]:
    """All faults: what is wrong, and what to do."""
    checks = MACHINE + (STACK if scene.stack else ())
    return [found for check in checks for found in check(scene)]


def show(scene: Scene, as_json: bool = False) -> int:
    """Print the faults, and what is no fault and worth a note. Returns the exit code: 1 if there are faults."""
    found, noted = examine(scene), [*notes(scene)]
    checks = len(MACHINE) + (len(STACK) if scene.stack else 0)
    if as_json:
        kinds = {"faults": found, "notes": noted}
        listed = {name: [{"what": what, "fix": fix} for what, fix in some] for name, some in kinds.items()}
        print(json.dumps({"stack": scene.stack, "checks": checks, **listed}))
        return 1 if found else 0
    for sign, each in (("✗", found), ("·", noted)):
        for what, fix in each:
            print(f"{sign} {what}\n  → {fix}")
    about = "the machine and the stack" if scene.stack else "the machine (no stack runs)"
    if not found:
        print(f"✓ {checks} checks of {about}: nothing found")
    return 1 if found else 0


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _beats_here() -> list[int]:
    """The process ids of beats on this machine that use the same broker, and of which none follows another."""
    wanted = f"CELERY_BROKER_URL={os.environ.get('CELERY_BROKER_URL', '')}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"beat" not in words or b"celery" not in words:
                continue
            environ = (folder / "environ").read_bytes().split(b"\0")
            if wanted in environ and not any(re.fullmatch(rb"BEATS=[2-9]", one) for one in environ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _memory_available() -> int:
    """The free memory of this machine, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1_024 for line in lines if line.startswith("MemAvailable:"))


def _holder(port: int) -> str:
    try:
        return port_holder(port)
    except EngineSilentError:
        return ""


def main() -> None:
    """Check the machine, and the stack if the environment names its broker or its app."""
    parser = Parser(description="Check the machine and the app's stack, and print each fault with what to do about it.")
    parser.add_argument("--json", action="store_true", help="one JSON object (docs/json.md)")
    as_json = parser.parse_args().json
    raise SystemExit(show(Scene(stack=any(os.environ.get(name) for name in ("CELERY_BROKER_URL", "CELERY_APP"))), as_json))


if __name__ == "__main__":
    main()
