"""`make test-fuzz`: fuzz what decides about a message, broker after broker, and write docs/reports/fuzz.md.

BROKER= chooses one, SECONDS= is how long each takes (600). `.kit/fuzz/BROKER` has the corpus, which the next run goes on with,
the findings, and samples of what was accepted and refused: `make test-security FUZZED=1` sends these to real workers. The exit
code is 1 if there is a finding.
"""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from celery_kit.base.refusals import choose, whole_number
from celery_kit.base.target import ROOT
from testbed.environments import FUZZ
from tests.fuzz.worker import BROKERS, ENGINES, quiet

HOME, REPORT = ROOT / ".kit/fuzz", ROOT / "docs/reports/fuzz.md"
#: Those of the process, beside the bounds of one input (tests/fuzz/target.py).
LIMITS = ("-timeout=60", "-rss_limit_mb=2048", "-mutate_depth=2", "-print_final_stats=1")
#: The modules whose lines are counted, and of the brokers' those that belong to one.
MODULES = ("base/gate.py", "base/sizes.py", "worker/dead_lettering.py", "engine/fast_path.py", "fixes/compression.py")
OWN = {"redis": ("brokers/redis/dead.py",), "rabbitmq": ("brokers/rabbitmq/frames_in.py",)}
DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)")


def fuzz(broker: str, seconds: int) -> dict[str, Any]:
    """Fuzz one broker's messages. Returns the figures."""
    folder = HOME / broker
    folder.mkdir(parents=True, exist_ok=True)
    argv = [FUZZ.command("python"), "-m", "tests.fuzz.target", broker, str(folder), f"-max_total_time={seconds}", *LIMITS]
    with (folder / "log").open("w") as log:
        code = subprocess.run(argv, cwd=ROOT, stdout=log, stderr=log).returncode
    text = (folder / "log").read_text(errors="replace")
    if not (done := DONE.search(text)):
        print(text[-3_000:])
        sys.exit(f"the fuzzer of {broker} ended with {code}: {folder}/log")
    runs, edges, features, corpus = map(int, done.groups())
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures | {"runs": runs, "edges": edges, "features": features, "corpus": corpus, "seconds": seconds}


def lines_of(code: CodeType) -> Iterator[int]:
    """The lines of all functions in a module's or function's code."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_name not in ("<genexpr>", "<listcomp>") and "__module__" not in inner.co_names[:1]:  # no class's body
                yield from (line for _, _, line in inner.co_lines() if line and line > inner.co_firstlineno)
            yield from lines_of(inner)


def replay(broker: str) -> dict[str, tuple[int, int]]:
    """By module, how many lines of its functions the corpus reaches, and how many there are."""
    names = [str(ROOT / "celery_kit" / name) for name in (*MODULES, *OWN[broker])]
    reached: dict[str, set[int]] = {name: set() for name in names}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        found = reached.get(frame.f_code.co_filename)
        if found is None:
            return None
        if event == "line":
            found.add(frame.f_lineno)
        return trace

    inputs = [path.read_bytes() for name in ("corpus", "seeds") for path in sorted((HOME / broker / name).iterdir())]
    quiet()
    for form in map(BROKERS[broker], ENGINES):
        sys.settrace(trace)
        try:
            for data in inputs:
                try:
                    form.take(data)
                except Exception:  # it is among the findings
                    continue
        finally:
            sys.settrace(None)
    every = {name: set(lines_of(compile(Path(name).read_text(), name, "exec"))) for name in names}
    return {str(Path(name).relative_to(ROOT)): (len(every[name] & reached[name]), len(every[name])) for name in names}


def write(figures: dict[str, dict[str, Any]]) -> None:
    """Write the report."""
    brokers = list(figures)
    rows = {
        "inputs that the fuzzer made": [f"{one['runs']:,}" for one in figures.values()],
        "seconds": [f"{one['seconds']:,}" for one in figures.values()],
        "accepted: runs, waits for its ETA, or had expired (of full thousands)": [
            f"{one.get('accepted', 0):,}" for one in figures.values()
        ],
        "refused, with a reason": [f"{one.get('refused', 0):,}" for one in figures.values()],
        "edges of the code reached, of celery_kit, kombu, py-amqp and celery.worker": [
            f"{one['edges']:,}" for one in figures.values()
        ],
        "inputs in the corpus": [f"{one['corpus']:,}" for one in figures.values()],
        "most processor time of an input, s": [str(one["slowest"]) for one in figures.values()],
        "most memory that an input added, MB": [f"{one['largest'] / 1e6:.0f}" for one in figures.values()],
        "**findings**": [str(findings(one)) for one in figures.values()],
    }
    covered = {broker: replay(broker) for broker in brokers}
    files = list(dict.fromkeys(name for one in covered.values() for name in one))
    share = {name: ["{} of {}".format(*one[name]) if name in one else "-" for one in covered.values()] for name in files}
    reasons: dict[str, list[int]] = {}
    for place, one in enumerate(figures.values()):
        for name, count in one.items():
            if name.startswith("reason: "):
                reasons.setdefault(name.removeprefix("reason: ").rstrip(":"), [0] * len(brokers))[place] += count
    most = dict(sorted(reasons.items(), key=lambda item: -sum(item[1]))[:30])
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "amqp"))
    at = f"{datetime.now(UTC):%F}; Python {platform.python_version()}, atheris {fuzzers()}, {packages}"
    REPORT.write_text(
        f"""# What decides about a message, fuzzed

A coverage-guided fuzzer (atheris, which is libFuzzer) makes what arrives at a worker: on Redis the item of a list, on RabbitMQ
a message's encoded properties and its body. Its seeds are the hostile messages of `make test-security`, and usual ones of
Celery's. Each input goes through the transport's code, [the gate](../delivery.md#what-a-message-may-be), Celery's handlers and
its strategy, as on `ENGINE=fast` and as on `ENGINE=plain`; what is accepted is run at once, as on solo. Sockets are stubs. An
input has to be accepted, or refused with a reason, once and acknowledged, on both engines alike. Any exception, more than 100
MB of memory, more than 2 s of a processor, or the end of the process is a finding.

Written by `make test-fuzz`, {at}.

{table(["", *brokers], rows)}

Lines of functions that seeds and corpus reach, of those in the file. Of `dead.py`, `fast_path.py` and `dead_lettering.py` much
is for what does not decide: listing letters, running tasks, connections.

{table(["module", *brokers], share)}

The most frequent reasons of a refusal, on the plain engine:

{table(["reason begins with", *brokers], {name.replace("|", " "): list(map(str, counts)) for name, counts in most.items()})}
"""
    )


def findings(one: dict[str, Any]) -> int:
    """How many inputs were findings."""
    return sum(count for name, count in one.items() if name.startswith("finding: "))


def fuzzers() -> str:
    """The version of atheris in its environment."""
    code = "from importlib.metadata import version; print(version('atheris'))"
    return subprocess.run([FUZZ.command("python"), "-c", code], capture_output=True, text=True).stdout.strip()


def table(head: list[str], rows: dict[str, list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Fuzz, and write the report."""
    seconds = whole_number("SECONDS", os.environ.get("SECONDS") or "600", 1, 10**6, "seconds")
    one = os.environ.get("BROKER")
    brokers = [choose("BROKER", one, BROKERS)] if one else list(BROKERS)
    FUZZ.prepare()
    figures = {broker: fuzz(broker, seconds) for broker in brokers}
    if not one:
        write(figures)
    for broker, found in figures.items():
        counts = f"{found['runs']:,} inputs, {found['edges']:,} edges, {findings(found)} findings"
        print(f"{broker}: {counts} in {HOME / broker}/findings")
    sys.exit(any(map(findings, figures.values())))


if __name__ == "__main__":
    main()
