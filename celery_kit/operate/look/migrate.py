"""Move all messages of a broker to another one: `celery-kit migrate --from URL --to URL`, and what `make migrate` does.

It can be interrupted, or killed, and run again: it goes on, and each message is moved once (celery_kit/brokers/moving.py).
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from celery import Celery
from kombu.utils.imports import symbol_by_name
from kombu.utils.url import maybe_sanitize_url

from celery_kit import brokers
from celery_kit.base.facts import readable
from celery_kit.base.messages import plain
from celery_kit.base.refusals import refuse
from celery_kit.brokers.moving import Batch, BusyError, End, NoRoomError, OtherTargetError, move
from celery_kit.operate.arguments import Parser
from celery_kit.profile import of_an_app

if TYPE_CHECKING:
    from celery_kit.base.types import Connection

#: In the output, what is not the name of a queue.
WORDS = {"delayed": "that wait for their ETA", "dead": "dead letters", "failed": "failed tasks", "claimed": "of an earlier run"}
#: Seconds between heartbeats on RabbitMQ, so that a run that was frozen does not keep the next one out for long.
HEARTBEAT = 5


@dataclass(frozen=True)
class Side:
    """A side of a move. `what`: the option that names it. `environ`: the environment in which its server is looked at."""

    what: str
    url: str
    environ: Mapping[str, str]

    @property
    def row(self) -> brokers.Broker | None:
        """Its broker's row: that of its stack, or else by its URL."""
        return brokers.BROKERS.get(self.environ.get("BROKER", "")) or brokers.room(self.url)

    @property
    def shown(self) -> str:
        """Its URL, without the password."""
        return readable(maybe_sanitize_url(self.url))


def of_url(what: str, url: str) -> Side:
    """The side at a URL. BROKER in the environment is that of a stack."""
    return Side(what, url, {name: value for name, value in os.environ.items() if name != "BROKER"})


def opened(app: Celery, side: Side, queues: Sequence[str]) -> tuple[End, "Connection"]:
    """One side, connected. Refuses a broker that the kit has no module for, or that cannot be reached."""
    row = side.row
    if row is None or row.end is None:
        known = sorted({scheme for one in brokers.BROKERS.values() if one.end for scheme in one.schemes})
        refuse(f"{side.what}={side.shown} cannot take part; allowed are URLs that begin with {', '.join(known)}")
    options = {**cast("dict[str, object]", row.settings(of_an_app(row, None)).get("broker_transport_options", {}))}
    connection = app.connection_for_write(side.url, heartbeat=HEARTBEAT, transport_options={**options, "engine": "plain"})
    make: Callable[..., End] = symbol_by_name(row.end)
    try:
        connection.connect()
        return make(app, connection, side.environ, queues), connection
    except connection.connection_errors as error:
        refuse(f"{side.what}={side.shown} cannot be reached ({plain(str(error))})")
    except BusyError as error:
        refuse(f"{side.what}={side.shown}: {error}")


def app_of(target: Side) -> Celery:
    """The app, with the settings that it has on the target: it declares its queues there. Changes this process' environment."""
    os.environ.pop("BROKER", None)  # .env may name the one that is left
    os.environ.update({**target.environ, "CELERY_BROKER_URL": target.url})
    from celery_kit.operate.target import app

    found = brokers.room(app.conf.broker_write_url)
    if found is not brokers.room(target.url):
        refuse(f"the app names a broker itself, and not {target.what}={target.shown}; set that in its settings first")
    return app


def told(moved: Mapping[str, int]) -> str:
    """How many messages there are, in words: those of queues, then the others."""
    rest = [f"{moved[name]} {what}" for name, what in WORDS.items() if moved.get(name)]
    return ", ".join([f"{number} in {plain(name)}" for name, number in moved.items() if name not in WORDS] + rest) or "nothing"


def run(
    app: Celery, source: Side, target: Side, queues: Sequence[str] = (), begin: Callable[[], object] = lambda: None
) -> None:
    """Move everything, with a bar, and print what was moved. Refuses what cannot be done, and what has to be done first.

    `begin`: called once nothing is refused, before any message is claimed.
    """
    from celery_kit.operate.look.dead import bar

    (from_, former), (to, latter) = opened(app, source, queues), opened(app, target, queues)
    errors = (*former.connection_errors, *former.channel_errors, *latter.connection_errors, *latter.channel_errors)
    moved: Counter[str] = Counter()
    try:
        there = from_.counts()
        room, size = to.room(), from_.size()
        if room is not None and size > room:
            much = f"{room / 1e6:.0f} MB, and {size / 1e6:.0f} MB are to be moved"
            refuse(f"TO={target.shown} has room for {much}: give it more memory")
        if type(from_) is type(to) and from_.same(to):
            refuse(
                f"FROM={source.shown} and TO={target.shown} are the same place; give another database, virtual host or prefix"
            )
        to.prepare(name for name in there if name not in WORDS)
        begin()
        print(f"to move: {told(there := from_.counts())}", flush=True)
        total = sum(there.values())
        with bar("moved") as draw:

            def done(batch: Batch) -> None:
                moved.update(one.queue if one.place == "queue" else one.place for one in batch.messages)
                draw(min(sum(moved.values()), max(total, 1)), max(total, 1))

            move(from_, to, done)
        print(f"moved: {told(moved)}")
        if held := from_.held():
            print(f"{held} are held by workers of the source: run it again when these have finished, or are stopped")
    except NoRoomError as error:
        refuse(f"TO={target.shown}: {error}; moved so far: {told(moved)}. Give it more room, and run the same again")
    except BusyError as error:
        refuse(f"{error}; end that, and run the same again")
    except OtherTargetError as error:
        refuse(f"FROM={source.shown} has messages that an unfinished run has claimed for {error}: finish that run first")
    except errors as error:
        refuse(f"a broker has failed ({plain(str(error))}); moved so far: {told(moved)}. Run the same again, it goes on")
    except KeyboardInterrupt:
        print(f"\ninterrupted; moved so far: {told(moved)}. Run the same again, it goes on", file=sys.stderr)
        sys.exit(130)
    finally:
        for one in (from_, to):
            one.close()


def main() -> None:
    """Move messages between two URLs. The app is configured for the target: its queues are declared there as it says."""
    parser = Parser(description="Move all messages of a broker to another one. Run it again to go on.")
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="the broker that is left")
    parser.add_argument("--to", dest="target", required=True, metavar="URL", help="the broker that takes over")
    parser.add_argument("--only", default="", help="only these queues, between commas; default: all")
    given = parser.parse_args()
    source, target = of_url("FROM", given.source), of_url("TO", given.target)
    run(app_of(target), source, target, [one for one in given.only.split(",") if one])


if __name__ == "__main__":
    main()
