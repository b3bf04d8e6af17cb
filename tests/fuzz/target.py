"""What atheris runs, in an environment of its own: `python -m tests.fuzz.target BROKER FOLDER [libFuzzer's options]`.

Each input (`tests/fuzz/inputs.py`) is decided about on both engines, as a worker does (`tests/fuzz/worker.py`). A finding is a
file in FOLDER/findings: an exception, a message that is neither accepted nor refused, engines that decide otherwise, more than
MEMORY or SECONDS for one input. FOLDER/accepted and FOLDER/refused have samples for real workers.
"""

import json
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import atheris

#: Bytes of memory that one input may take, and seconds of a processor.
MEMORY, SECONDS = 100_000_000, 2.0
#: How many samples there are of what was accepted, and of what was refused.
SAMPLES = 2_500
#: The packages whose branches lead the fuzzer.
INSTRUMENTED = ["celery_kit", "kombu", "amqp", "celery.worker", "celery.utils", "celery.app.amqp"]


class Deciding:
    """Decides about inputs, and writes what is found."""

    def __init__(self, forms: Mapping[str, Any], folder: Path) -> None:
        self.forms = forms
        self.folder, self.counts, self.random = folder, Counter[str](), Random(1)
        self.slowest = self.largest = 0.0
        for name in ("findings", "accepted", "refused"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def __call__(self, data: bytes) -> None:
        """Decide about one input on both engines."""
        decided = []
        for engine, form in self.forms.items():
            memory, began = peak(), time.process_time()
            try:
                decided.append(form.take(data))
            except Exception as error:  # what the worker's loop would get
                decided.append("")
                self.found(f"{type(error).__name__} on {engine}", data, traceback.format_exc())
            seconds, more = time.process_time() - began, peak() - memory
            self.slowest, self.largest = max(self.slowest, seconds), max(self.largest, more)
            if seconds > SECONDS or more > MEMORY:
                self.found("too slow" if seconds > SECONDS else "too much memory", data, f"{engine}: {seconds} s, {more} bytes")
        fast, plain = decided
        if fast and plain and (fast == "dead") != (plain == "dead") and fast != "waits":  # which decides once it is due
            why = [form.worker.reasons for form in self.forms.values()]
            self.found(f"{fast} on fast, {plain} on plain", data, str(why))
        self.note("refused" if plain == "dead" else "accepted", data)
        for reason in self.forms["plain"].worker.reasons:
            self.counts[f"reason: {' '.join(word for word in reason.split()[:5] if chr(39) not in word)[:60]}"] += 1
        if self.counts["inputs"] % 1_000 == 0:
            self.report()

    def note(self, outcome: str, data: bytes) -> None:
        """Count an input, and keep it as a sample with the probability that each has the same."""
        self.counts["inputs"] += 1
        self.counts[outcome] += 1
        place = self.random.randrange(self.counts[outcome]) if self.counts[outcome] > SAMPLES else self.counts[outcome] - 1
        if place < SAMPLES:
            (self.folder / outcome / f"{place:04}").write_bytes(data)

    def found(self, what: str, data: bytes, about: str) -> None:
        """Write a finding, the first of its kind."""
        lines = [line.strip() for line in about.splitlines() if line.strip()]
        place = " ".join(word for word in (what, *lines[-3:-1]) if word)[:150].replace("/", "_")
        self.counts[f"finding: {what}"] += 1
        path = self.folder / "findings" / place
        if not path.exists():
            path.write_bytes(data)
            path.with_name(f"{path.name}.txt").write_text(about)

    def report(self) -> None:
        """Write the figures so far."""
        figures = {"slowest": round(self.slowest, 3), "largest": self.largest, **self.counts}
        (self.folder / "figures.json").write_text(json.dumps(figures, indent=1))


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Fuzz, until libFuzzer's options say that it is enough."""
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz import inputs, worker

    _, broker, folder, *options = sys.argv
    root = Path(folder)
    worker.quiet()
    forms = {engine: worker.BROKERS[broker](engine) for engine in worker.ENGINES}  # which registers compressions, too
    inputs.write_seeds(broker, root / "seeds")
    (root / "corpus").mkdir(exist_ok=True)
    mutate = inputs.MUTATORS[broker]

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        return mutate(data, Random(seed), atheris.Mutate)[:longest]

    argv = [sys.argv[0], f"-max_len={inputs.LONGEST}", f"-artifact_prefix={root}/", *options, f"{root}/corpus", f"{root}/seeds"]
    atheris.Setup(argv, Deciding(forms, root), custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
