"""Dead letters (`celery_kit/worker/dead_lettering.py`), failed tasks among them: list them, send them back, drop them.

`python -m celery_kit.operate.look.dead`, `make dead`.

Sending them back, or dropping them, can be interrupted and done again: each letter is sent back, and removed, in one step.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from celery import Celery
from celery.exceptions import OperationalError

from celery_kit import brokers
from celery_kit.base.facts import address
from celery_kit.base.messages import plain
from celery_kit.base.refusals import choose, refuse
from celery_kit.brokers.contract import KINDS, Action, DeadLetter
from celery_kit.operate.arguments import OF_DEAD, Parser, advice, next_look
from celery_kit.operate.target import app

#: Units of SINCE, in seconds.
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
DONE: Mapping[Action, str] = {"retry": "sent back", "drop": "dropped"}


@dataclass(frozen=True)
class Filter:
    """Which letters are meant; all, where nothing is given. `since`: as `DeadLetter.when`. `task`: a name, or a pattern."""

    id: str = ""
    task: str = ""
    kind: str = ""
    since: str = ""
    reason: str = ""

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        return (
            self.id in ("", letter.id)
            and (not self.task or fnmatchcase(letter.task, self.task))
            and self.kind in ("", letter.kind)
            and letter.when >= self.since
            and self.reason.lower() in letter.reason.lower()
        )


def since(given: str, now: datetime | None = None) -> str:
    """The time that SINCE names, as `DeadLetter.when` has it: a time ago, or one in ISO 8601. Refuses anything else."""
    ago = re.fullmatch(r"([0-9]{1,9})([smhd])", given)
    try:
        if ago:
            at = (now or datetime.now(UTC)) - timedelta(seconds=int(ago[1]) * UNITS[ago[2]])
        else:
            at = datetime.fromisoformat(given)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        refuse(f"SINCE={given} is not known; allowed: a time ago such as 90s, 30m, 12h or 7d, or 2026-11-30T12:00 (UTC)")
    return at.isoformat(timespec="seconds")


def each(app: Celery, decide: Callable[[DeadLetter], Action], done: Callable[[int, int], object] = lambda *_: None) -> None:
    """Call `decide` for every letter, oldest first, and apply what it returns. `done(number, total)` follows that.

    Raises OperationalError if a letter cannot be sent back. Refuses a broker on which the kit stores no dead letters.
    """
    broker = brokers.room(app.conf.broker_read_url)
    if broker is None or (stored := broker.letters()) is None:
        refuse("the kit stores no dead letters on this broker: it has no module for the one that CELERY_BROKER_URL names")
    stored.each(app, decide, done)


def letters(app: Celery) -> list[DeadLetter]:
    """All dead letters, oldest first."""
    found: list[DeadLetter] = []

    def note(letter: DeadLetter) -> Action:
        found.append(letter)
        return "keep"

    each(app, note)
    return sorted(found, key=lambda letter: letter.when)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], object]]:
    """A function that draws on the terminal how many letters were sent back or dropped, of how many. On others, nothing."""
    drawn: list[int] = []

    def draw(number: int, total: int) -> None:
        width = 30 * number // total
        if sys.stderr.isatty() and drawn[-1:] != [(1_000 * number) // total]:
            drawn.append((1_000 * number) // total)
            print(f"\r[{'#' * width:<30}] {number}/{total} {what}", end="", file=sys.stderr, flush=True)

    try:
        yield draw
    finally:
        if drawn:
            print(file=sys.stderr)


def main() -> None:
    """List the letters that are meant, by kind; with an option, send them back or drop them."""
    parser = Parser(description="List dead letters, failed tasks among them; send them back, drop them.")
    for name, what in OF_DEAD.items():
        parser.add_argument(f"--{name}", default="", help=what)
    parser.add_argument("--json", action="store_true", help="one JSON object (docs/json.md)")
    given = parser.parse_args()
    if given.retry and given.drop:
        refuse("RETRY and DROP contradict each other; give one of them")
    wanted = given.retry or given.drop
    action: Action = "retry" if given.retry else "drop"
    ids = {one for one in (given.id, wanted) if one and one != "all"}
    if len(ids) > 1:
        refuse(f"ID and {action.upper()} contradict each other; give one of them")
    meant = Filter(
        next(iter(ids), ""),
        given.task,
        choose("KIND", given.kind, KINDS) if given.kind else "",
        since(given.since) if given.since else "",
        given.reason,
    )
    seen: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Action:
        if not meant.matches(letter):
            return "keep"
        seen.append(letter)
        return action if wanted else "keep"

    try:
        with bar(DONE[action]) as draw:
            each(app, decide, draw)
    except app.connection().connection_errors as error:
        refuse(f"the broker at {address(app)} cannot be reached ({error}); {next_look()}")
    except KeyboardInterrupt:
        print("interrupted: the others are still dead letters; give the same command again", file=sys.stderr)
        sys.exit(130)
    except OperationalError as error:
        refuse(f"not all were sent back, the others were: {error}")
    if ids and not seen:
        refuse(f"no dead letter has the id {meant.id}; '{advice('make', 'celery-kit')} dead' lists them")
    seen.sort(key=lambda one: (_rank(one), one.when))
    if given.json:
        print(json.dumps({"done": DONE[action] if wanted else "listed", "letters": [asdict(letter) for letter in seen]}))
        return
    for letter in seen:
        print(_line(letter))
        if given.id and letter.traceback:
            print(plain(letter.traceback.rstrip(), kept="\n\t"))
    kinds = Counter(letter.kind for letter in seen)
    if len(kinds) > 1:
        print(", ".join(f"{number} {plain(kind)}" for kind, number in kinds.items()))
    listed = "dead letter" if len(seen) == 1 else "dead letters"
    print(f"{len(seen)} {DONE[action] if wanted else listed}")


def _rank(letter: DeadLetter) -> int:
    return KINDS.index(letter.kind) if letter.kind in KINDS else len(KINDS)


def _line(letter: DeadLetter) -> str:
    tries = f"{letter.deliveries} deliver{'y' if letter.deliveries == 1 else 'ies'}"
    tried = f"  {letter.attempts} attempts" if letter.attempts > 1 else ""
    on = f"  on {letter.worker}" if letter.worker else ""
    return plain(
        f"{letter.kind:<9}  {letter.id}  {letter.task or '(no task)'}  queue {letter.queue}  {letter.when}  {tries}{tried}{on}"
        f"  {letter.reason}"
    )


if __name__ == "__main__":
    main()
