"""The ledger of accepted and of done tasks, recorded independently of Celery and the broker."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """A line that a process wrote: `event` is ready, begin or end; `kind` task, once, hog or tick; `time` in seconds of
    the machine's monotonic clock.
    """

    event: str
    task: str
    node: str
    kind: str
    time: float


class Ledger:
    """`accepted`: ids that a producer's send() returned without an error. The effects are read from the workers' file."""

    def __init__(self, effects: Path) -> None:
        self.effects = effects
        self.accepted: set[str] = set()
        self.refused = 0
        self._read = 0
        self._lines: list[Line] = []

    def lines(self) -> list[Line]:
        """All complete lines so far. An incomplete line at the end is read the next time."""
        if self.effects.exists():
            with self.effects.open("rb") as file:
                file.seek(self._read)
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self._read += len(text)
            for line in text.decode().splitlines():
                event, task, node, *kind, time = line.split()
                self._lines.append(Line(event, task, node, "".join(kind), float(time)))
        return self._lines

    def _of(self, event: str) -> Counter[str]:
        return Counter(line.task for line in self.lines() if line.event == event and line.task in self.accepted)

    def begun(self) -> set[str]:
        return set(self._of("begin"))

    def done(self) -> set[str]:
        return set(self._of("end"))

    def missing(self) -> set[str]:
        """Tasks that were accepted and never done."""
        return self.accepted - self.done()

    def repeated(self, kind: str = "task") -> list[str]:
        """Tasks of one kind that were done more than once."""
        of_kind = {line.task for line in self.lines() if line.kind == kind}
        return [task for task, times in self._of("end").items() if times > 1 and task in of_kind]

    def begun_again(self) -> list[str]:
        """Tasks that were begun more than once. Some of these runs may have been interrupted."""
        return [task for task, times in self._of("begin").items() if times > 1]

    def under_way(self) -> bool:
        """Whether a task was begun more often than it ended."""
        return bool(self._of("begin") - self._of("end"))

    def first_after(self, moment: float, nodes: Iterable[str]) -> dict[str, float]:
        """Seconds from `moment` to the first task that a node began afterwards, by node. Nodes that began none are missing."""
        first: dict[str, float] = {}
        wanted = set(nodes)
        for line in self.lines():
            if line.event == "begin" and line.time >= moment and line.node in wanted:
                first.setdefault(line.node, line.time - moment)
        return first

    def ready(self, node: str) -> int:
        """How often a node has started."""
        return sum(1 for line in self.lines() if line.event == "ready" and line.node == node)
