"""Write the tables in README.md and docs/ anew from the code: `make docs`. `--check` only says whether they are stale."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from packaging.specifiers import SpecifierSet
from prometheus_client.core import Metric

from bench import report
from celery_kit.base import capabilities
from celery_kit.base.facts import BOUNDS, Queue, Server, vitals_of
from celery_kit.brokers import BROKERS
from celery_kit.engine import parts as engine
from celery_kit.fixes import FIXES, PARTS
from celery_kit.operate import groups as worker_groups
from celery_kit.operate.documents import DOCUMENTS, SAME, WITHOUT
from celery_kit.operate.kubernetes.rules import RULES
from celery_kit.operate.look import exporter
from celery_kit.operate.look.status import Snapshot
from celery_kit.pools.table import POOLS
from celery_kit.results import BACKENDS
from docs import reference
from docs.reference import table
from testbed.servers import SERVERS
from tests.compat.messages import ANYWHERE, REDIS
from tests.faults.table import FAULTS, Fault
from tests.integration.report import SIGNS
from tests.packages.table import TABLE, versions

ROOT = Path(__file__).resolve().parents[1]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def pools() -> str:
    return table(
        ("POOL", "made for", "tasks at once", "time limits enforced", "answers during a task"),
        *(
            (
                f"`{p.name}`",
                p.for_work,
                str(p.concurrency or "one a CPU core, within its CPU limit"),
                p.time_limits,
                _yes(p.answers_while_busy),
            )
            for p in POOLS.values()
        ),
    )


def backends() -> str:
    return table(
        ("BACKEND", "a result is read by", "chords", "a server of its own"),
        *(
            (
                f"`{b.name}`",
                "any process, by its id" if b.read_elsewhere else "the process that sent the task",
                "yes" if b.chords else "no: Celery raises NotImplementedError",
                _yes(b.has_server),
            )
            for b in BACKENDS.values()
        ),
    )


@cache
def _matrix() -> dict[str, Any]:
    return dict(json.loads((ROOT / "docs/matrix.json").read_text()))


def brokers() -> str:
    return table(
        ("BROKER", "where it runs", "a task with an ETA waits", "URLs begin with"),
        *(
            (
                f"`{broker.name}`",
                f"[{broker.compose_file}](../{broker.compose_file})" if broker.compose_file else "a process of this machine",
                "in the broker" if broker.delays_tasks else "in a worker",
                ", ".join(f"`{scheme}:`" for scheme in broker.schemes),
            )
            for broker in BROKERS.values()
        ),
    )


def broker_differences() -> str:
    """What is different on each broker, with each backend where it matters: the rooms' own rows."""
    titles = {name: about["title"] for name, about in _matrix()["features"].items()}
    rows = []
    for broker in (BROKERS[name] for name in SERVERS):  # the others have rows of these
        together = [(f"`{broker.name}`", broker.limits)]
        together += [(f"`{broker.name}` and `{name}`", limits) for name, limits in broker.backend_limits.items()]
        rows += [
            (who, titles[name], SIGNS[limit.kind], limit.what) for who, limits in together for name, limit in limits.items()
        ]
    return table(("where", "what the test says of the others", "", "there"), *rows)


def pool_differences() -> str:
    """What a pool cannot do or does differently, as the committed run of the matrix saw it with all brokers and backends."""
    data, outcomes = _matrix(), dict[tuple[str, str], set[str]]()
    for cell in data["cells"]:
        outcomes.setdefault((cell["feature"], cell["combination"].rpartition("-")[2]), set()).add(cell["outcome"])
    instead: dict[str, dict[str, list[str]]] = {}
    for pool in POOLS.values():
        for feature, limit in pool.limits.items():
            instead.setdefault(feature, {}).setdefault(limit.what, []).append(f"`{pool.name}`")
    return table(
        ("what the test says", *(f"`{pool}`" for pool in POOLS), "elsewhere"),
        *(
            (
                data["features"][feature]["title"],
                *(
                    " ".join(sign for name, sign in SIGNS.items() if name in outcomes.get((feature, pool), ()))
                    for pool in POOLS
                ),
                "; ".join(f"{', '.join(names)}: {what}" if len(told) > 1 else what for what, names in told.items()),
            )
            for feature, told in instead.items()
        ),
    )


def _pairs(trials: Iterable[dict[str, Any]]) -> str:
    return ", ".join(sorted(f"{one['broker']} {one['pool']}" for one in trials))


def faults() -> str:
    """A row a fault, over the committed trials. At work again: every worker has begun a task after the fault's end."""
    trials = json.loads((ROOT / "docs/reports/faults.json").read_text())

    def row(fault: Fault) -> tuple[str, ...]:
        kit, plain = (
            [one for one in trials if one["fault"] == fault.name and one["engine"] == engine and not one["error"]]
            for engine in ("kit", "plain")
        )
        if not kit:
            return (f"`{fault.name}`", fault.what, "not run", *[""] * 5)
        fits = sum(fault.fits(broker, pool) for broker in SERVERS for pool in POOLS)
        never = _pairs(one for one in kit if one["flowing"] is None)
        seconds = max((one["flowing"] for one in kit if one["flowing"] is not None), default=None)
        again = [f"{seconds:.0f} s"] if seconds is not None else []
        return (
            f"`{fault.name}`",
            fault.what,
            "all" if len(kit) == fits else _pairs(kit),
            *(str(sum(one[name] for one in kit)) for name in ("accepted", "lost", "repeated")),
            "; ".join([*again, *([f"never: {never}"] if never else [])]),
            f"{sum(one['lost'] for one in plain)} of {sum(one['accepted'] for one in plain)}" if plain else "",
        )

    heads = ("fault", "what happens", "run on", "accepted", "lost", "done twice", "at work again in", "plain Celery lost")
    return table(heads, *(row(fault) for fault in FAULTS))


def _run_of_bench() -> dict[str, Any] | None:
    file = ROOT / "docs/bench.json"
    return json.loads(file.read_text()) if file.exists() else None


def speed() -> str:
    """How often the kit's worker does what plain Celery's does."""
    if not (found := _run_of_bench()):
        return "Not measured yet: `make bench ONLY=deployed`."
    cells = {
        (fast["case"]["broker"], fast["case"]["pool"]): f"{report.times(fast, plain).split()[0]}x, {report.number(fast)}"
        for one in report.by_case(report.of(found, "deployed"))
        if (fast := one.get(report.FAST)) and (plain := one.get(report.PLAIN))
    }
    heads = ("times plain Celery, and tasks/s", *POOLS)
    rows = ((broker, *(cells.get((broker, pool), "") for pool in POOLS)) for broker in dict.fromkeys(key[0] for key in cells))
    return f"{table(heads, *rows)}\n\n{report.made_by(found, 'deployed')}"


def bench() -> str:
    """What `make bench` found, if a run is kept as docs/bench.json: which pool for which work, each beside plain Celery."""
    if not (found := _run_of_bench()):
        return "Not measured yet: `make bench`."
    parts = (report.best(found), report.pools(found), report.made_by(found, "pools", *report.WORK))
    return "\n\n".join(filter(None, parts))


def benchmark() -> str:
    """All of it."""
    if not (found := _run_of_bench()):
        return "Not measured yet: `make bench`."
    return report.markdown(found).partition("\n\n")[2].strip()


def choices() -> str:
    """What the kit's choices gain or cost a worker, if a run of the benchmark is kept that has measured it."""
    if not (found := _run_of_bench()) or not (rows := report.choices(found)):
        return "Not measured yet: `make bench ONLY=choices`."
    return f"{rows}\n\n{report.made_by(found, 'choices')}"


def alerts() -> str:
    """The rules that Prometheus has."""
    rules = yaml.safe_load((ROOT / "deploy/observability/alerts.yml").read_text())["groups"][0]["rules"]
    return table(
        ("alert", "it says", "after", "when", "do"),
        *(
            (
                f"`{rule['alert']}`",
                re.sub(r"{{ \$labels\.(\w+) }}", r"*\1*", rule["annotations"]["summary"]),
                rule["for"],
                f"`{' '.join(rule['expr'].split())}`",
                rule["annotations"]["action"],
            )
            for rule in rules
        ),
    )


def metrics() -> str:
    """What the exporter serves, as it says it itself."""
    none = [0.0] * (len(BOUNDS) + 2)
    task = {"task": "", "queue": "", "waited": none, "ran": none, "ended": {"": 0}, "early": 0}
    worker = vitals_of(
        {"pool": "", "consuming": [], "active": 0, "reserved": 0, "processed": 0, "memory": 0, "measures": [task]}
    )
    found = Snapshot(Server("", "", [Queue("", 0, 0, 0, 0.0, False)], delayed=0), None, {"": worker}, [])
    with patch.dict(os.environ, BEAT_HEARTBEAT_FILE=__file__):
        told = list(exporter.metrics(found))
    return table(
        ("metric", "it is", "for each"),
        *((f"`{one.name}{'_total' if one.type == 'counter' else ''}`", one.documentation, _labels(one)) for one in told),
    )


def _labels(metric: Metric) -> str:
    return ", ".join(f"`{label}`" for label in metric.samples[0].labels if label != "le")


def packages() -> str:
    held = versions()
    words = {"works": "works", "differently": "works differently", "cannot": "does not work"}
    return table(
        ("package", "version", "on the kit", "what the test does with it", "to know"),
        *((name, held[name], words[one.outcome], one.runs, one.note) for name, one in TABLE.items()),
    )


def messages() -> str:
    """What becomes of the messages of other clients."""
    rows = [(one.what, one.celery, one.kit) for one in ANYWHERE]
    return table(("message", "plain Celery", "here"), *rows, *((f"Redis: {one.what}", one.celery, one.kit) for one in REDIS))


def groups() -> str:
    """What a worker group may say."""
    return table(
        ("field", "allowed", "what it is", "left out"),
        *((f"`{one.name}`", one.kind.words, one.what, one.otherwise) for one in worker_groups.FIELDS.values()),
    )


def documents() -> str:
    """What commands print with JSON=1."""
    return table(
        ("command", "field", "what it is"),
        *((f"`{name}`", f"`{field}`", what) for name, fields in DOCUMENTS.items() for field, what in fields.items()),
        *((f"`{name}`", "", f"as `{other}`") for name, other in SAME.items()),
    )


def without_document() -> str:
    """The commands that print none."""
    return table(("command", "why"), *((f"`{name}`", why) for name, why in WITHOUT.items()))


def kubernetes_components() -> str:
    """The components of deploy/kubernetes/, as each says itself in its first lines."""
    home = ROOT / "deploy/kubernetes/components"
    rows = []
    for file in sorted(home.rglob("kustomization.yaml")):
        lines = re.match(r"(?:# .*\n)*", file.read_text())
        what = " ".join(line.removeprefix("# ") for line in lines[0].splitlines()) if lines else ""
        if "kind: Component" in file.read_text():
            rows.append((f"`{file.parent.relative_to(home)}`", what))
    return table(("component", "what it is"), *rows)


def kubernetes_rules() -> str:
    """What must be true of what is rendered for Kubernetes."""
    return table(("rule", "it demands"), *((f"`{name}`", one.__doc__ or "") for name, one in RULES.items()))


def changes() -> str:
    """What taking the kit changes in each of examples/."""
    patches = sorted((ROOT / "examples").glob("*/kit.patch"))
    return "\n\n".join(
        f"[examples/{path.parent.name}](../examples/{path.parent.name}):\n\n```diff\n{path.read_text().rstrip()}\n```"
        for path in patches
    )


def _needs(needs: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {versions}" for package, versions in needs.items())


def _reference(reference: str) -> str:
    owner, _, number = reference.removeprefix("https://github.com/").rpartition("/")
    return f"[{owner.split('/')[1]} #{number}]({reference})" if reference.startswith("https:") else reference


def _meets(lock: str, needs: Mapping[str, str]) -> bool:
    """Whether the versions of a lock, over those of the developers' one, meet `needs`."""
    pins = _pins("dev") | _pins(lock)
    return all(pins[package] in SpecifierSet(versions) for package, versions in needs.items())


@cache
def _pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==([\w.!]+)", (ROOT / f"requirements/{lock}.txt").read_text(), re.MULTILINE))


def compatibility() -> str:
    """What is left out with the locks of earlier Celery versions, and what Celery's own way is there."""
    locks = sorted((path.stem for path in (ROOT / "requirements").glob("celery-*.txt")), reverse=True)

    def column(needs: Mapping[str, str], closed: Mapping[str, str] | None = None) -> list[str]:
        return [
            "yes" if _meets(lock, needs) else "not needed" if closed and _meets(lock, closed) else "**off**" for lock in locks
        ]

    rows = [(f"fix `{one.name}`", column(one.needs, one.closed), one.what) for one in FIXES.values()]
    rows += [(one.name, column(one.needs), f"instead: {one.instead}") for one in PARTS.values()]
    rows += [(f"fast engine: `{one.name}`", column(one.needs), one.what) for one in engine.PARTS.values()]
    heads = [" + ".join(f"{name} {_pins(lock)[name]}" for name in ("celery", "kombu", "redis")) for lock in locks]
    return table(("", *heads, ""), *((name, *cells, what) for name, cells, what in rows if set(cells) != {"yes"}))


def earlier() -> str:
    """What earlier versions of Celery do differently, as the matrix' rows know it."""
    titles = {name: about["title"] for name, about in _matrix()["features"].items()}
    rows = [("", one) for one in capabilities.EARLIER]
    rows += [(f"`BACKEND={backend.name}`", one) for backend in BACKENDS.values() for one in backend.earlier]
    rows += [(f"`POOL={pool.name}`", one) for pool in POOLS.values() for one in pool.earlier]
    return table(
        ("what the test says", "versions", "where", "there", "reference"),
        *(
            (titles[one.feature], _needs(one.needs), where, one.limit.what, _reference(one.limit.reference))
            for where, one in rows
        ),
    )


def fixes() -> str:
    return table(
        ("fix", "the fault", "reference", "versions", "can go by"),
        *((f"`{one.name}`", one.what, _reference(one.reference), _needs(one.needs), f"`{one.test}`") for one in FIXES.values()),
    )


def parts() -> str:
    return table(
        ("part", "versions", "elsewhere"),
        *((one.name, _needs(one.needs), one.instead) for one in PARTS.values()),
    )


_TABLES = (
    alerts, metrics, groups, documents, without_document, kubernetes_components, kubernetes_rules,
    pools, backends, brokers, broker_differences, pool_differences, faults, bench,
    benchmark, choices, packages, speed, messages, changes, fixes, parts, compatibility, earlier,
)  # fmt: skip
TABLES: dict[str, Callable[[], str]] = {
    **{one.__name__: one for one in _TABLES},
    **reference.TABLES,
}


def renewed(text: str) -> str:
    """`text` with every part between `<!-- table: NAME -->` and `<!-- end -->` written anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def schema() -> str:
    """The JSON schema of the table of worker groups, as its file has it."""
    return f"{json.dumps(worker_groups.schema(), indent=2)}\n"


def main() -> None:
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    made = {**{path: renewed(path.read_text()) for path in pages}, worker_groups.SCHEMA: schema()}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        sys.exit(f"stale, run 'make docs': {', '.join(path.name for path in stale)}" if stale else 0)
    for path in stale:
        path.write_text(made[path])


if __name__ == "__main__":
    main()
