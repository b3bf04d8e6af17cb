"""Celery's settings, in Celery's own names; the whole of it on one screen, composed from the rooms.

Not read before Celery needs a setting. What the user can choose stands in `app/profile.py`.
"""

import logging
from pathlib import Path
from pkgutil import iter_modules

from app import engine, schedule
from app.profile import Profile

# The underscore keeps it, and the passwords in its URLs, out of `celery inspect conf`.
_profile = Profile.from_environ()

broker_url = _profile.broker_url
result_backend = _profile.result_backend
# A task is a function in a module of app/tasks/, and nothing else has to be told.
imports = [f"app.tasks.{module.name}" for module in iter_modules([str(Path(__file__).parent / "tasks")])]

# Nothing accepted is lost: a message is acknowledged after its task, and goes back if the worker dies. DELIVERY=at-most-once
# trades that for tasks that never run twice.
task_acks_late = task_reject_on_worker_lost = _profile.delivery == "at-least-once"
# How much a worker keeps from the others for each task that it runs at once. `celery worker --prefetch-multiplier` wins.
worker_prefetch_multiplier = _profile.prefetch_multiplier
worker_concurrency = _profile.concurrency  # auto: the pool's own number, on prefork what the CPU limit allows (app/pools.py)
broker_connection_retry_on_startup = True  # a worker may start before its broker
broker_connection_max_retries = None  # Celery gives up after 100
broker_pool_acquire_timeout = 10.0  # seconds; Celery waits for ever
publish_timeout = _profile.publish_timeout  # the kit's own, app/publishing.py
spool, spool_most = _profile.spool, _profile.spool_most  # app/spool.py

# One number bounds a task; the stack's stop grace period and the broker's redelivery follow from it.
task_time_limit = _profile.task_time_limit
# No soft limit beside it: prefork starts a hard limit's clock only when the soft one fires, so that a task's own, shorter
# time_limit would count for nothing (celery/concurrency/asynpool.py, on_timeout_set).
task_soft_time_limit = None

task_always_eager = _profile.always_eager  # for tests and a first look: delay() runs the task, and no broker is asked
task_track_started = True  # STARTED tells what runs from what waits

result_expires = _profile.result_expires
task_serializer = result_serializer = event_serializer = _profile.serializer  # one for all three
accept_content = list(_profile.accept_content)
task_compression = _profile.task_compression
result_compression = _profile.result_compression
timezone = _profile.timezone
enable_utc = True  # times in messages, whatever TIMEZONE

# app/schedule.py: its timetable, and a scheduler that tells when each entry ran, and that beat lives.
beat_schedule = schedule.timetable(_profile)
beat_scheduler = "app.schedule:Scheduler"
beat_schedule_filename = str(_profile.data_dir / "celerybeat-schedule.json")
beat_max_loop_interval = 10  # seconds; how often beat shows that it lives

worker_hijack_root_logger = False  # app/logs.py sets it up
worker_redirect_stdouts = _profile.redirect_stdouts  # what a task prints is a line of the log; a debugger needs it as it is
worker_send_task_events = _profile.send_events  # for Flower; MONITOR=1 turns it on
worker_proc_alive_timeout = 30.0  # seconds; on a busy machine a new child takes longer than Celery's 4

globals().update(_profile.broker.settings(_profile) | _profile.backend.settings(_profile))

if _profile.engine == "fast":
    globals().update(engine.settings(_profile))

if not task_acks_late:
    logging.getLogger(__name__).warning(
        "celery-kit: DELIVERY=at-most-once: a task that has begun never runs again; if its worker dies, it is lost"
    )

if _profile.signing:
    globals().update(_profile.signing.settings())
elif "pickle" in {task_serializer, *accept_content}:
    logging.getLogger(__name__).warning(
        "celery-kit: pickle is on: whoever can write to the broker or the results server can run any code in this process"
    )
