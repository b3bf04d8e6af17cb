"""Beat's scheduler: it shows that beat lives, and keeps as JSON what Celery's keeps as pickles."""

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler, ScheduleEntry

from celery_kit.base.refusals import refuse, why_not_writable
from celery_kit.observe import health

logger = logging.getLogger(__name__)
#: What the file with the timetable is called: HEARTBEAT_FILE and this.
TIMETABLE = ".timetable"


class _Kept(dict[str, Any]):
    """What Celery's scheduler keeps in a shelf, whose pickles would be executed: here the last runs alone, as JSON."""

    def __init__(self, file: Path, entry: Callable[..., ScheduleEntry]) -> None:
        super().__init__()
        self.file = file
        try:
            kept = json.loads(file.read_bytes())
            kept["entries"] = {name: entry(name, **about) for name, about in kept["entries"].items()}
            self.update(kept)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever stands there
            logger.warning("beat begins again: %s is no timetable of its own: %r", file, error)

    def sync(self) -> None:
        entries = {
            name: {"last_run_at": entry.last_run_at.isoformat(), "total_run_count": entry.total_run_count}
            for name, entry in self.get("entries", {}).items()
        }
        draft = self.file.with_name(f"{self.file.name}.{os.getpid()}.draft")
        draft.write_text(json.dumps({**self, "entries": entries}, default=str))
        draft.replace(self.file)

    def close(self) -> None:
        """Nothing is open."""


class Scheduler(PersistentScheduler):
    """Celery's own scheduler; each round writes HEARTBEAT_FILE, if that is set, and what ran and is next beside it."""

    schedule_filename: str

    def _open_schedule(self) -> _Kept:
        return _Kept(Path(self.schedule_filename), self._kept_entry)

    def _kept_entry(self, name: str, last_run_at: str, total_run_count: int) -> ScheduleEntry:
        """An entry that is told by Celery what it is, and knows when it ran, in the app's own zone."""
        ran = datetime.fromisoformat(last_run_at).astimezone(self.app.timezone)
        entry: ScheduleEntry = self.Entry(name=name, app=self.app, last_run_at=ran, total_run_count=int(total_run_count))
        return entry

    def setup_schedule(self) -> None:
        file = Path(self.schedule_filename)
        with suppress(OSError):  # why, is asked next
            file.parent.mkdir(parents=True, exist_ok=True)
        if why := why_not_writable(file):  # Celery would take its file for a broken one, and delete it
            instead = "name a folder that can be written in DATA_DIR=, or a file in it by `celery beat --schedule`"
            refuse(f"the timetable cannot be kept in {file}: {why}; {instead}")
        super().setup_schedule()

    def timetable(self) -> dict[str, Any]:
        """By entry: when it last ran (ISO 8601; None: not yet), when it is due next, how often it ran."""
        told = {}
        for name, entry in self.schedule.items():
            ran = entry.last_run_at if entry.total_run_count else None
            due = entry.default_now() + timedelta(seconds=entry.is_due()[1])
            told[name] = {"last": ran and ran.isoformat(), "next": due.isoformat(), "runs": entry.total_run_count}
        return told

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        waits = super().tick(*args, **kwargs)
        if file := os.environ.get("HEARTBEAT_FILE"):
            health.put(Path(f"{file}{TIMETABLE}"), json.dumps(self.timetable()))
            health.write(Path(file), health.now() + health.heartbeat_seconds())
        return waits
