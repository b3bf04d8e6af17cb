"""Dead letters: list what was set aside (`celery_kit/worker/dead_lettering.py`), send it back, drop it. `python -m
celery_kit.operate.look.dead` does it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict

from celery import Celery
from celery.exceptions import OperationalError

from celery_kit import brokers
from celery_kit.base.facts import address
from celery_kit.base.refusals import refuse
from celery_kit.brokers.contract import Action, DeadLetter
from celery_kit.operate.arguments import Parser, advice, next_look
from celery_kit.operate.target import app


def each(app: Celery, decide: Callable[[DeadLetter], Action]) -> None:
    """Show every letter to `decide`, the oldest first, and do what it says."""
    broker = brokers.room(app.conf.broker_read_url)
    if broker is None or broker.dead_letters is None:
        refuse("the kit keeps no dead letters on this broker; CELERY_BROKER_URL names one that it has no room for")
    broker.dead_letters.each(app, decide)


def letters(app: Celery) -> list[DeadLetter]:
    """What is set aside, the oldest first."""
    found: list[DeadLetter] = []

    def note(letter: DeadLetter) -> Action:
        found.append(letter)
        return "keep"

    each(app, note)
    return sorted(found, key=lambda letter: letter.when)


def main() -> None:
    parser = Parser(description="List what was set aside, send it back, drop it.")
    parser.add_argument("--retry", metavar="ID|all")
    parser.add_argument("--drop", metavar="ID|all")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    given = parser.parse_args()
    if given.retry and given.drop:
        refuse("RETRY and DROP contradict each other; give one of them")
    wanted, action = given.retry or given.drop, "retry" if given.retry else "drop"
    seen: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Action:
        if wanted and wanted not in ("all", letter.id):
            return "keep"
        seen.append(letter)
        return action if wanted else "keep"  # type: ignore[return-value]

    try:
        each(app, decide)
    except app.connection().connection_errors as error:
        refuse(f"the broker at {address(app)} cannot be reached ({error}); {next_look()}")
    except OperationalError as error:
        refuse(f"not all were sent back, the others were: {error}")
    if wanted not in (None, "all") and not seen:
        refuse(f"no dead letter has the id {wanted}; '{advice('make', 'celery-kit')} dead' lists them")
    for letter in sorted(seen, key=lambda one: one.when):
        print(json.dumps(asdict(letter)) if given.json else _line(letter))
    if not given.json:
        done = {"retry": "sent back", "drop": "dropped"}[action] if wanted else "set aside"
        print(f"{len(seen)} {done}")


def _line(letter: DeadLetter) -> str:
    tries = f"{letter.deliveries} deliver{'y' if letter.deliveries == 1 else 'ies'}"
    return f"{letter.id}  {letter.task or '(no task)'}  queue {letter.queue}  {letter.when}  {tries}  {letter.reason}"


if __name__ == "__main__":
    main()
