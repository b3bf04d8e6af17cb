"""Dead letters (`celery_kit/worker/dead_lettering.py`): list them, send them back, drop them. `python -m
celery_kit.operate.look.dead`, `make dead`.
"""

import json
from collections.abc import Callable, Mapping
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
    """Call `decide` for every letter, oldest first, and apply what it returns.

    Raises OperationalError if a letter cannot be sent back. Refuses a broker on which the kit stores no dead letters.
    """
    broker = brokers.room(app.conf.broker_read_url)
    if broker is None or broker.dead_letters is None:
        refuse("the kit stores no dead letters on this broker: it has no module for the one that CELERY_BROKER_URL names")
    broker.dead_letters.each(app, decide)


def letters(app: Celery) -> list[DeadLetter]:
    """All dead letters, oldest first."""
    found: list[DeadLetter] = []

    def note(letter: DeadLetter) -> Action:
        found.append(letter)
        return "keep"

    each(app, note)
    return sorted(found, key=lambda letter: letter.when)


def main() -> None:
    """List the letters, or those of one id. With an option, send them back or drop them."""
    parser = Parser(description="List dead letters, send them back, drop them.")
    parser.add_argument("--retry", metavar="ID|all")
    parser.add_argument("--drop", metavar="ID|all")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    given = parser.parse_args()
    if given.retry and given.drop:
        refuse("RETRY and DROP contradict each other; give one of them")
    wanted = given.retry or given.drop
    action: Action = "retry" if given.retry else "drop"
    seen: list[DeadLetter] = []

    def decide(letter: DeadLetter) -> Action:
        if wanted and wanted not in ("all", letter.id):
            return "keep"
        seen.append(letter)
        return action if wanted else "keep"

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
        done: Mapping[Action, str] = {"retry": "sent back", "drop": "dropped"}
        listed = "dead letter" if len(seen) == 1 else "dead letters"
        print(f"{len(seen)} {done[action] if wanted else listed}")


def _line(letter: DeadLetter) -> str:
    tries = f"{letter.deliveries} deliver{'y' if letter.deliveries == 1 else 'ies'}"
    return f"{letter.id}  {letter.task or '(no task)'}  queue {letter.queue}  {letter.when}  {tries}  {letter.reason}"


if __name__ == "__main__":
    main()
