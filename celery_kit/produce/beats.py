"""Beats of which one leads: it sends what is due, and another one leads when it dies, is frozen, or loses the broker.

The broker knows who leads and what each entry of the timetable did last (`Lead` in celery_kit/brokers/contract.py). A message
and the run of its entry are one step there. So each due time is sent once, whichever beats believe that they lead. The
timetable goes by the broker's clock, so that the clock of a beat's machine may be wrong, or be set.
"""

import heapq
import logging
import time
import traceback
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, cast

from celery.beat import PersistentScheduler, ScheduleEntry, Service, event_t
from kombu import Producer as KombuProducer
from kombu import Queue
from kombu.utils.imports import symbol_by_name

from celery_kit.base.messages import Part, UnroutedError
from celery_kit.base.refusals import refuse
from celery_kit.brokers import BROKERS, room
from celery_kit.brokers.contract import Lead, Run
from celery_kit.observe import beat, health
from celery_kit.produce.alike import Published, Recorder, part_of
from celery_kit.produce.publishing import GivenProducer

if TYPE_CHECKING:
    from celery_kit.produce.publishing import Connection

logger = logging.getLogger(__name__)
#: Seconds between two rounds: the broker notices in time that a beat is gone, and this beat that it has to lead.
EVERY = 1.0
#: The difference of this machine's clock from the broker's, in seconds, from which on it is reported.
CLOCK = 5.0


def check(sender: Service, **_: object) -> None:
    """Refuse to start one of several beats whose scheduler would not lead or follow, but send everything."""
    if sender.app.conf.get("beats", 1) > 1 and not isinstance(sender.scheduler, Scheduler):
        kind = type(sender.scheduler)
        refuse(
            f"BEATS={sender.app.conf.beats}: the scheduler {kind.__module__}.{kind.__qualname__} would have each beat send "
            "everything; leave out beat_scheduler and --scheduler, or take BEATS=1"
        )


class Scheduler(beat.Scheduler):
    """See the module."""

    leads: bool = False
    _heap: list[event_t] | None
    schedule: dict[str, ScheduleEntry]
    #: The term in which this beat has read the runs; empty: they are to be read again.
    _term = ""
    #: What was not sent in this round, and is to be tried again.
    _unsent: ScheduleEntry | None = None
    #: When the files were written, by the monotonic clock.
    _shown = 0.0

    @cached_property
    def _refused(self) -> set[str]:
        """Entries whose message the broker has refused. Their run counts without it, as in Celery."""
        return set()

    @cached_property
    def _said(self) -> dict[str, str]:
        """What was logged of an entry, or with an empty name of the broker, so that it is logged once."""
        return {}

    @cached_property
    def lead(self) -> Lead:
        """The broker's part. Refuses a broker that has none."""
        broker = room(self.app.conf.broker_write_url)
        if not (broker and broker.lead):
            allowed = ", ".join(one.name for one in BROKERS.values() if one.lead)
            refuse(f"BEATS={self.app.conf.beats} cannot be had with this broker; with {allowed}, or BEATS=1")
        found: Lead = symbol_by_name(broker.lead)(self.app)
        return found

    def setup_schedule(self) -> None:
        """As for one beat. Refuses a broker with which no beat can lead."""
        super().setup_schedule()
        self.lead  # noqa: B018  # it is refused before anything starts

    def tick(self, *_: object, **__: object) -> float:
        """Lead, or follow; send what is due if this beat leads. Returns the seconds until the next round, EVERY at most."""
        led, reached = self.leads, True
        try:
            self.leads = self._led()
            seconds = self._round() if self.leads else EVERY
        except self.lead.errors as error:
            self.leads, self._term, reached, seconds = False, "", False, EVERY
            self._say("", f"the broker does not answer, another beat may lead: {str(error) or type(error).__name__}")
        if self.leads != led:
            logger.info("this beat leads" if self.leads else "this beat leads no more: it follows")
        if reached:
            self._said.pop("", None)
        if self.leads != led or time.monotonic() - self._shown >= health.EVERY:
            self._shown = time.monotonic()
            self.show(alive=reached)
        return min(seconds, EVERY)

    def _say(self, name: str, why: str) -> None:
        if why != self._said.get(name):
            self._said[name] = why
            logger.error("%s%s", name and f"{name}: ", why)

    def _led(self) -> bool:
        """Whether this beat leads now, and knows what was sent."""
        term = self.lead.hold()
        if not term or term == self._term:
            return bool(term)
        self._adopt(self.lead.runs())
        if not self.lead.keep({name: _run_of(entry) for name, entry in self.schedule.items()}):
            return False
        self._term, self._heap = term, None
        if (apart := abs(time.time() - self.lead.now())) > CLOCK:
            logger.warning("this machine's clock is %.0f s apart from the broker's, by which the timetable goes", apart)
        return True

    def _adopt(self, runs: dict[str, Run]) -> None:
        """Take over the last runs that the broker knows, unless this beat knows later ones, from the time of a single beat."""
        now = self._now()
        for name, entry in self.schedule.items():
            about = vars(entry.schedule)
            about["nowfun"] = about.get("nowfun") or self._now
            stored = runs.get(name)
            with suppress(ValueError, OverflowError):
                if stored and stored["total_run_count"] >= entry.total_run_count:
                    ran = datetime.fromisoformat(stored["last_run_at"]).astimezone(self.app.timezone)
                    entry.last_run_at, entry.total_run_count = ran, stored["total_run_count"]
            # One that has never run counts from now, whatever this machine's clock says.
            entry.last_run_at = min(entry.last_run_at or now, now) if stored or entry.total_run_count else now

    def _now(self) -> datetime:
        """The broker's time, in the app's time zone."""
        return datetime.fromtimestamp(self.lead.now(), tz=self.app.timezone)

    def _round(self) -> float:
        """Celery's round: one due entry, or none."""
        self._unsent = None
        seconds: float = PersistentScheduler.tick(self)
        if self._unsent and self._heap:  # it is due again in a moment, and others are not to wait for it
            old = self._unsent
            self._heap = [
                event._replace(time=self._when(old, EVERY), entry=old) if event.entry.name == old.name else event
                for event in self._heap
            ]
            heapq.heapify(self._heap)
        return seconds

    @property
    def producer(self) -> GivenProducer:
        """What declares queues, and makes messages, over the connection by which this beat leads."""
        return GivenProducer(cast("Connection", self.lead.connection), auto_declare=False)

    def apply_entry(self, entry: ScheduleEntry, producer: KombuProducer | None = None) -> None:
        """Send a due entry, and have the broker note its run. What the broker does not accept now is tried again."""
        name, sent = str(entry.name), False
        logger.info("Scheduler: Sending due task %s (%s)", name, entry.task)
        try:
            part, queue = (None, "") if name in self._refused else self._message(entry)
            sent = self.lead.fire(name, _run_of(self.schedule[name]), part, queue)
            self._term = self._term if sent else ""
            self._refused.discard(name)
            self._said.pop(name, None)
        except UnroutedError as error:
            self._say(name, str(error))
        except self.lead.errors as error:
            if self.lead.is_refusal(error):
                self._refused.add(name)
            self._term = ""
            self._say(name, str(error) or type(error).__name__)
        finally:
            if not sent:
                self.schedule[name] = self._unsent = entry

    def _message(self, entry: ScheduleEntry) -> tuple[Part | None, str]:
        """The message of an entry, and the queue that has to get it. None if it cannot be made, which is logged.

        Raises the errors of a broker that is unavailable, or has no such queue yet.
        """
        producer = self.producer
        recorder = Recorder(producer)
        try:
            result = self.apply_async(entry, producer=recorder, advance=False)
        except Exception as error:
            if isinstance(error.__context__, self.lead.errors):
                raise error.__context__ from None
            logger.error("Message Error: %s\n%s", error, traceback.format_stack(), exc_info=True)
            return None, ""
        made: Published | None = getattr(recorder, "recorded", None)
        if not made:
            return None, ""  # with task_always_eager it has run here
        for entity in made.declare or ():
            producer.maybe_declare(entity)
        part = part_of(result.id, made)
        to = (made.exchange, made.routing_key)
        queues = [one for one in made.declare or () if isinstance(one, Queue)]
        return part, next((q.name for q in queues if to in ((q.exchange.name, q.routing_key), ("", q.name))), "")

    def sync(self) -> None:
        """Write the file of the timetable. Beats may share it: the leader alone writes."""
        if self.leads:
            super().sync()

    def close(self) -> None:
        """As for one beat. Another beat may lead at once."""
        super().close()
        if self.leads:
            self.lead.leave()
        self.leads, self._term = False, ""


def _run_of(entry: ScheduleEntry) -> Run:
    return {"last_run_at": cast("datetime", entry.last_run_at).isoformat(), "total_run_count": entry.total_run_count}
