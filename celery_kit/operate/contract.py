"""`make contract BASE=`: can workers of this code run what the code at a git ref sends, and workers of that what this sends?

While a stack is updated both run, and messages of the old code wait in queues. Each side is imported in a process of its own
(celery_kit/operate/look/interface.py). For each task the calls are made that its signature allows, from the fewest arguments to
all of them, and are bound to the signature of the other side.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import Signature
from pathlib import Path
from typing import NamedTuple

from celery_kit.base.refusals import refuse, unless_refused
from celery_kit.base.target import ROOT
from celery_kit.brokers.embedded import NOWHERE
from celery_kit.operate import groups
from celery_kit.operate.look import interface as interfaces
from celery_kit.operate.look.interface import Interface, Parameter, Refusals, Task, Values
from celery_kit.operate.stacks.codebase import Codebase, answer, code_of, environ_of, folder_of, python_of

OLD, NEW, LOST = "old messages → new workers", "new messages → old workers", "new messages → new workers"
BOTH, RESULTS = "old and new workers", {OLD: "old results → new readers", NEW: "new results → old readers"}
#: The kinds of parameters, which a description has as numbers.
KIND: Callable[[int], inspect._ParameterKind] = type(inspect.Parameter.POSITIONAL_ONLY)
#: What stands for one more positional argument, and one more keyword, than a signature names.
MORE = "more"
_P = inspect.Parameter
_POSITIONAL = (_P.POSITIONAL_ONLY, _P.POSITIONAL_OR_KEYWORD)
#: What to do, by the kind of a fault, for old messages and for new ones.
LATER = "update workers first, and what sends tasks after all of them (WORKERS_FIRST=1)"
DO = {
    "gone": ("keep a task of this name until no message of the old code is left", LATER),
    "missing": ("give it a default", f"go on sending it, or {LATER}"),
    "extra": ("keep the argument, or take **kwargs, until no message of the old code is left", LATER),
    "moved": ("keep the order; new arguments at the end, or by keyword alone", "likewise"),
    "content": ("add it to accept_content", f"accept it in a version before the one that sends it, or {LATER}"),
    "compression": ("install its package", f"install its package in a version before this one, or {LATER}"),
    "model": ("let the model take it: a default for a new field, no narrower type", f"let the old values be, or {LATER}"),
}


@dataclass(frozen=True)
class Finding:
    """A line. `way`: which messages, and whose workers. `note`: nothing breaks by itself."""

    way: str
    task: str
    what: str
    do: str = ""
    note: bool = False

    def __str__(self) -> str:
        return f"{'note: ' * self.note}{self.way}: {self.task}: {self.what}{self.do and f'; {self.do}'}"


class Call(NamedTuple):
    """Arguments of a task. Each value is the name of its parameter."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def __str__(self) -> str:
        return f"({', '.join([*map(str, self.args), *(f'{name}=…' for name in self.kwargs)])})"


class Fault(NamedTuple):
    """Why a call cannot be bound. `kind`: a key of DO."""

    kind: str
    what: str


@dataclass(frozen=True)
class Side:
    """One of the two versions: what its app sends and takes, and the queues that its workers consume."""

    interface: Interface
    consumed: frozenset[str]


def signature(parameters: Iterable[Parameter]) -> Signature:
    """The signature of a task, by its description."""
    return Signature(
        [_P(one["name"], KIND(one["kind"]), default=_P.empty if one["default"] is None else None) for one in parameters]
    )


def calls(of: Signature) -> Iterator[Call]:
    """The calls that a signature allows, of each number of arguments: by position, and by keyword."""
    found = of.parameters.values()
    positional = [one for one in found if one.kind in _POSITIONAL]
    by_keyword = [one for one in found if one.kind in (_P.POSITIONAL_OR_KEYWORD, _P.KEYWORD_ONLY)]
    kinds = {one.kind for one in found}
    names = tuple(one.name for one in positional)
    least = sum(one.default is _P.empty for one in positional)
    must = {one.name: one.name for one in found if one.kind is _P.KEYWORD_ONLY and one.default is _P.empty}
    for number in range(least, len(names) + 1):
        yield Call(names[:number], must)
    if _P.VAR_POSITIONAL in kinds:
        yield Call((*names, MORE), must)
    only = [one for one in positional if one.kind is _P.POSITIONAL_ONLY]
    first = tuple(one.name for one in only if one.default is _P.empty)
    required = {one.name: one.name for one in by_keyword if one.default is _P.empty}
    yield Call(first, required)
    for one in by_keyword:
        yield Call(first, {**required, one.name: one.name})
    yield Call(tuple(one.name for one in only), {one.name: one.name for one in by_keyword})
    if _P.VAR_KEYWORD in kinds:
        yield Call(first, {**required, MORE: MORE})


def faults(call: Call, of: Signature, to: Signature) -> Iterator[Fault]:
    """Why a call that the signature `of` allows is not what `to` takes: in the words of the TypeError that its worker gets."""
    try:
        bound = to.bind_partial(*call.args, **call.kwargs)
    except TypeError as error:
        yield Fault("extra", str(error))
        return
    moved = [
        Fault("moved", f"what is sent as {value} by position is taken as {name}")
        for name, value in bound.arguments.items()
        if to.parameters[name].kind in _POSITIONAL and value != name and (value in to.parameters or name in of.parameters)
    ]
    yield from moved
    for one in to.parameters.values():
        required = one.default is _P.empty and one.kind not in (_P.VAR_POSITIONAL, _P.VAR_KEYWORD)
        if required and one.name not in bound.arguments and not moved:
            yield Fault("missing", f"missing a required argument: {one.name!r}")


def of_calls(way: str, name: str, sent: Task, taken: Task) -> Iterator[Finding]:
    """What of the calls of a task breaks, each fault once, with the first call that has it."""
    of, to, seen = signature(sent["parameters"]), signature(taken["parameters"]), set[str]()
    for call in calls(of):
        for fault in faults(call, of, to):
            if fault.what not in seen:
                seen.add(fault.what)
                yield Finding(way, name, f"sent as {call}: {fault.what}", DO[fault.kind][way == NEW])


def of_messages(way: str, name: str, sent: Task, to: Interface) -> Iterator[Finding]:
    """What of the form of a task's messages the other side cannot read."""
    if sent["content"] not in to["accepts"]:
        yield Finding(way, name, f"its messages are {sent['content']}, which is not accepted", DO["content"][way == NEW])
    if sent["compression"] and sent["compression"] not in to["decompresses"]:
        what = f"its messages are compressed as {sent['compression']}, which cannot be read"
        yield Finding(way, name, what, DO["compression"][way == NEW])


def of_beat(way: str, sent: Interface, to: Interface) -> Iterator[Finding]:
    """What of beat's own messages breaks, with the arguments that its timetable gives."""
    for entry in sent["beat"]:
        name = f"{entry['task']} (beat's entry {entry['name']!r})"
        if (task := to["tasks"].get(entry["task"])) is None:
            if entry["task"] not in sent["tasks"]:  # otherwise a line of the task says so
                yield Finding(way, name, "no task of this name", DO["gone"][way == NEW])
            continue
        try:
            signature(task["parameters"]).bind(*entry["args"], **entry["kwargs"])
        except TypeError as error:
            kind = "missing" if "missing" in str(error) else "extra"
            yield Finding(way, name, str(error), DO[kind][way == NEW])


def of_queues(old: Side, new: Side) -> Iterator[Finding]:
    """Queues that tasks wait in and that no worker of the new code consumes, if that is new; and how queues are declared."""
    for way, side, do in (
        (OLD, old, "let a group or QUEUES consume it until it is empty"),
        (LOST, new, "let a group or QUEUES consume it"),
    ):
        waiting: dict[str, list[str]] = {}
        for name, task in side.interface["tasks"].items():
            if name in new.interface["tasks"]:
                waiting.setdefault(task["queue"], []).append(name)
        for entry in side.interface["beat"]:
            waiting.setdefault(entry["queue"], []).append(f"{entry['task']} (beat's entry {entry['name']!r})")
        known = {task["queue"] for task in old.interface["tasks"].values()} | {e["queue"] for e in old.interface["beat"]}
        for queue, names in sorted(waiting.items()):
            was = queue in old.consumed or queue not in known  # what nobody consumed before is somebody else's to consume
            if queue and queue not in new.consumed and was:
                yield Finding(way, ", ".join(names), f"wait in queue {queue}, which no worker of the new code consumes", do)
    before, after = old.interface["queues"], new.interface["queues"]
    for queue in sorted(before.keys() & after.keys()):
        one, other = before[queue], after[queue]
        if changed := sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
            how = ", ".join(f"{key} {one.get(key)!r}, now {other.get(key)!r}" for key in changed)
            do = "delete the queue while it is empty and no worker runs, or give the new one another name"
            yield Finding(BOTH, f"queue {queue}", f"is declared otherwise: {how}", do, note=not new.interface["strict"])


def of_notes(name: str, old: Task, new: Task) -> Iterator[Finding]:
    """Changes that no message breaks at, for the eye of a person."""

    def note(what: str) -> Finding:
        return Finding("old and new code", name, what, note=True)

    if old["typing"] != new["typing"]:
        yield note(f"typing is {new['typing']}, and was {old['typing']}: without it a call is sent unchecked, whatever it has")
    if old["ignore_result"] != new["ignore_result"]:
        yield note(f"ignore_result is {new['ignore_result']}, and was {old['ignore_result']}: the code that sends decides")
    now = {one["name"]: one for one in new["parameters"]}
    for one in old["parameters"]:
        other = now.get(one["name"])
        if other is None:
            continue
        if None not in (one["default"], other["default"]) and one["default"] != other["default"]:
            yield note(f"{one['name']} is {other['default']} where it is left out, and was {one['default']}")
        if one["annotation"] != other["annotation"] and one["name"] not in new["models"]:
            words = (other["annotation"] or "nothing", one["annotation"] or "nothing")
            yield note("{} is annotated {}, and was {}: Celery does not check it".format(one["name"], *words))
    for added in sorted({*new["models"]} - {*old["models"]}):
        if added in {one["name"] for one in old["parameters"]}:
            yield note(f"{added} is checked by a Pydantic model now: whether old values fit is not known")


def compare(old: Side, new: Side, refused: Mapping[str, Refusals]) -> Iterator[Finding]:
    """All findings. `refused`: by way, which values of Pydantic's models the other side's models refuse."""
    for way, sender, receiver in ((OLD, old.interface, new.interface), (NEW, new.interface, old.interface)):
        for name, sent in sender["tasks"].items():
            if (taken := receiver["tasks"].get(name)) is None:
                yield Finding(way, name, "no task of this name: a dead letter", DO["gone"][way == NEW])
                continue
            yield from of_calls(way, name, sent, taken)
            yield from of_messages(way, name, sent, receiver)
            for parameter, whys in refused[way].get(name, {}).items():
                yield from (Finding(way, name, f"{parameter} is refused: {why}", DO["model"][way == NEW]) for why in whys)
        yield from of_beat(way, sender, receiver)
        if sender["result"] not in receiver["reads"]:
            what = f"results are {sender['result']}, which the other code does not accept"
            yield Finding(RESULTS[way], "all tasks", what, "add it to result_accept_content in a version before")
    yield from of_beat(LOST, new.interface, new.interface)
    yield from of_queues(old, new)
    for name in sorted(old.interface["tasks"].keys() & new.interface["tasks"].keys()):
        yield from of_notes(name, old.interface["tasks"][name], new.interface["tasks"][name])


def ask(codebase: Codebase | None, folder: Path, given: str = "") -> str:
    """Run the description of an app in a process of its own. `folder`: of app/, without a codebase. `given`: its input.

    Refuses, in one line, an app that cannot be loaded.
    """
    broker = os.environ.get("BROKER") or "embedded"
    urls = {"CELERY_BROKER_URL": NOWHERE, "CELERY_RESULT_BACKEND": NOWHERE} if codebase and broker == "embedded" else {}
    unknown = dict.fromkeys(("BROKER_PASSWORD", "RESULTS_PASSWORD"), "unknown")  # nothing is connected
    environ = {**unknown, **os.environ, **urls, "BROKER": broker, **environ_of(codebase)}
    argv = [python_of(codebase), "-P", interfaces.__file__]
    cwd = codebase.source if codebase else folder
    done = subprocess.run(argv, cwd=cwd, env=environ, input=given, capture_output=True, text=True, check=False)
    return answer(codebase, done)


def _consumed(folder: Path, found: Interface) -> frozenset[str]:
    """The queues that a version's workers consume: those of its groups, of QUEUES, or of its settings."""
    table, _ = unless_refused(lambda: groups.read(folder, "prefork", 1))
    own = (os.environ.get("QUEUES") or os.environ.get("CELERY_WORKER_QUEUES") or "").replace(" ", "").split(",")
    grouped = groups.queues_of(table.groups) if table else []
    return frozenset(grouped or filter(None, own)) or frozenset(found["consumed"])


def _git(folder: Path, *words: str, **environ: str) -> str:
    """What a command of git prints; empty if it fails."""
    argv = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(argv, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        refuse("git is not installed; BASE names a commit of it")
    return "" if done.returncode else done.stdout.strip()


@contextmanager
def checked_out(base: str, folder: Path) -> Iterator[Path]:
    """A folder as it is at a git ref, in a temporary place. Its repository stays as it is. Refuses what is no ref."""
    if not (top := _git(folder, "rev-parse", "--show-toplevel")):
        refuse(f"BASE={base}: {folder} is in no git repository")
    commit = "" if base.startswith("-") else _git(folder, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    if not commit:
        refuse(f"BASE={base} is no commit of {top}; a branch, a tag or a hash, such as origin/main")
    with tempfile.TemporaryDirectory(prefix="celery-kit-contract-") as place:
        index = {"GIT_INDEX_FILE": f"{place}/index"}
        _git(Path(top), "read-tree", commit, **index)
        _git(Path(top), "checkout-index", "--all", "--quiet", f"--prefix={place}/code/", **index)
        found = Path(place, "code", folder.resolve().relative_to(top))
        if not found.is_dir():
            refuse(f"BASE={base} has no folder {folder.resolve().relative_to(top)}")
        yield found


def _at(codebase: Codebase, source: Path) -> Codebase:
    """A codebase in another folder, with the requirements that are there."""
    own = codebase.requirements
    if own and own.is_relative_to(codebase.source) and (there := source / own.relative_to(codebase.source)).is_file():
        own = there
    return replace(codebase, source=source, requirements=own)


def check(base: str, codebase: Codebase | None, workers_first: bool, as_json: bool = False) -> int:
    """Print the findings. Returns the exit code: 1 if something breaks. `workers_first`: new messages meet no old worker."""
    groups.read(code_of(codebase), "prefork", 1)  # refuses a table that is wrong; that of the other version is left out then
    if codebase:
        codebase.check("local")
    with checked_out(base, folder_of(codebase)) as folder:
        former = _at(codebase, folder) if codebase else None
        both = ((former, folder), (codebase, ROOT))
        for one, _ in both:
            python_of(one)  # it may have to make an environment, which both may share

        def asked(given: Iterable[str]) -> list[str]:
            with ThreadPoolExecutor(2) as pool:
                steps = [partial(ask, *side, one) for side, one in zip(both, given, strict=True)]
                jobs = [pool.submit(unless_refused, step) for step in steps]
            for job, at in zip(jobs, (f"BASE={base}: ", ""), strict=True):
                if why := job.result()[1]:
                    refuse(f"{at}{why.replace(str(folder), '.')}")
            return [job.result()[0] or "" for job in jobs]

        found: list[Interface] = [json.loads(one) for one in asked(("", ""))]
        tables = (folder if codebase else folder / "app", code_of(codebase))
        old, new = (Side(one, _consumed(at, one)) for one, at in zip(found, tables, strict=True))
        values: list[Values] = [one["values"] for one in found]
        refused: list[Refusals] = [{}, {}]
        if any(values):
            refused = [json.loads(one) for one in asked(json.dumps(one) for one in reversed(values))]
    lines = list(compare(old, new, {NEW: refused[0], OLD: refused[1]}))
    if workers_first:
        lines = [replace(one, note=True) if one.way == NEW else one for one in lines]
    lines.sort(key=lambda one: one.note)
    breaks = sum(not one.note for one in lines)
    number = len(old.interface["tasks"].keys() | new.interface["tasks"].keys())
    if as_json:
        print(json.dumps({"base": base, "tasks": number, "findings": [asdict(one) for one in lines]}))
        return 1 if breaks else 0
    for line in lines:
        print(line)
    ends = f"{breaks} findings break" if breaks > 1 else "1 finding breaks" if breaks else "nothing breaks"
    print(f"{number} tasks, against {base}: {ends}", file=sys.stderr)
    return 1 if breaks else 0
