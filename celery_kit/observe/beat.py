"""Beat's scheduler. It writes a heartbeat file, and stores the last runs as JSON, where Celery's scheduler stores pickles."""

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler, ScheduleEntry

from celery_kit.base.facts import TimetableEntry
from celery_kit.base.files import read_regular
from celery_kit.base.refusals import refuse, why_not_writable
from celery_kit.observe import health

logger = logging.getLogger(__name__)
#: The file with the timetable has the name of HEARTBEAT_FILE and this ending.
TIMETABLE = ".timetable"
#: The key beside the entries of that file which says whether a beat leads others. No entry has an empty name.
LEADS = ""
#: What is stored beside the entries, by Celery's names: if it differs from the app's, Celery begins again.
KEPT = ("__version__", "tz", "utc_enabled")
#: The most bytes of the stored runs: some hundred thousand entries.
MOST = 16 * 1024 * 1024


def timetable_in(text: str) -> tuple[dict[str, TimetableEntry], bool | None]:
    """What beat wrote into the file of its timetable, and whether it leads others; None: it is alone.

    Nothing if it is no timetable, as anybody may write there.
    """
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            leads = found.pop(LEADS, None)
            return found, leads if isinstance(leads, bool) else None
    return {}, None


class _JsonShelf(dict[str, Any]):
    """Takes the place of the scheduler's shelf, whose pickles could execute code. Stores only the last runs, as JSON."""

    def __init__(self, file: Path, entry: Callable[..., ScheduleEntry]) -> None:
        super().__init__()
        self.file = file
        try:
            stored = json.loads(read_regular(file, MOST))
            entries = {name: entry(name, **about) for name, about in stored["entries"].items()}
            if not isinstance(stored.get("utc_enabled", True), bool):
                raise TypeError("utc_enabled")  # Celery looks it up, and would end
            self.update({name: stored[name] for name in KEPT if name in stored}, entries=entries)
        except FileNotFoundError:
            pass
        except Exception as error:  # the file may hold anything
            logger.warning("beat starts without its last runs: %s is no timetable of beat's: %r", file, error)

    def sync(self) -> None:
        """Write the file, in one step."""
        entries = {
            name: {"last_run_at": entry.last_run_at.isoformat(), "total_run_count": entry.total_run_count}
            for name, entry in self.get("entries", {}).items()
        }
        draft = self.file.with_name(f"{self.file.name}.{os.getpid()}.draft")
        draft.write_text(json.dumps({**self, "entries": entries}, default=str))
        draft.replace(self.file)

    def close(self) -> None:
        """Do nothing: no file is open."""


class Scheduler(PersistentScheduler):
    """Celery's scheduler. Each round also writes HEARTBEAT_FILE, if that is set, and the timetable beside it.

    Of several beats (celery_kit/produce/beats.py) the one that leads writes BEAT_HEARTBEAT_FILE too, which they share.
    """

    schedule_filename: str
    #: Whether this beat leads; None: it is alone.
    leads: bool | None = None

    def _open_schedule(self) -> _JsonShelf:
        return _JsonShelf(Path(self.schedule_filename), self._restored_entry)

    def _restored_entry(self, name: str, last_run_at: str, total_run_count: int) -> ScheduleEntry:
        """An entry with its last run, in the app's time zone. Celery adds its task and schedule from the settings.

        A run in the future is taken for one of now: such an entry would never be due.
        """
        ran = min(datetime.fromisoformat(last_run_at).astimezone(self.app.timezone), datetime.now(self.app.timezone))
        entry: ScheduleEntry = self.Entry(name=name, app=self.app, last_run_at=ran, total_run_count=int(total_run_count))
        return entry

    def setup_schedule(self) -> None:
        """Read the last runs and the settings' schedule. Refuses a file that cannot be written."""
        file = Path(self.schedule_filename)
        with suppress(OSError):  # the next check reports the reason
            file.parent.mkdir(parents=True, exist_ok=True)
        if why := why_not_writable(file):  # Celery would take the file for a corrupted one, and delete it
            instead = "name a folder that can be written in DATA_DIR=, or a file in it by `celery beat --schedule`"
            refuse(f"the timetable cannot be stored in {file}: {why}; {instead}")
        super().setup_schedule()

    def timetable(self) -> dict[str, TimetableEntry]:
        """By entry: when it last ran (ISO 8601; None: not yet), when it is due next, how often it ran."""
        found: dict[str, TimetableEntry] = {}
        for name, entry in self.schedule.items():
            ran = entry.last_run_at if entry.total_run_count else None
            due = entry.default_now() + timedelta(seconds=entry.is_due()[1])
            found[name] = {"last": ran.isoformat() if ran else None, "next": due.isoformat(), "runs": entry.total_run_count}
        return found

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due. Returns the seconds until the next round."""
        seconds = super().tick(*args, **kwargs)
        self.show()
        return seconds

    def show(self, alive: bool = True) -> None:
        """Write the files. `alive`: with the sign of life."""
        until = health.now() + health.heartbeat_seconds()
        if file := os.environ.get("HEARTBEAT_FILE"):
            said = self.timetable() if self.leads is None else {**self.timetable(), LEADS: self.leads}
            health.put(Path(f"{file}{TIMETABLE}"), json.dumps(said))
            if alive:
                health.write(Path(file), until)
        if alive and self.leads is not False and (shared := os.environ.get("BEAT_HEARTBEAT_FILE")):
            health.write(Path(shared), until)
