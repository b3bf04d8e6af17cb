"""A plugin of pytest for Celery's own integration suite: `-p tests.upstream.kit_app`. SUITE_POOL chooses its workers' pool.

The suite asks celery.contrib.testing for its apps, which makes them of the class Celery. Where ENGINE says so they are the
kit's here, with the kit's settings under the suite's own and every step that the kit's app has.
"""

import os
from typing import Any

from celery.contrib.testing import app as testing
from celery.contrib.testing import worker

start_worker = worker.start_worker


def start(app: Any, *args: Any, **options: Any) -> Any:
    if options.get("pool") == "prefork":  # the suite's own choice
        options["pool"] = os.environ.get("SUITE_POOL") or "prefork"
    return start_worker(app, *args, **options)


worker.start_worker = start

if os.environ.get("ENGINE"):
    from app import Kit, app

    class SuitesApp(Kit):
        """The kit's app, for the suite."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.config_from_object("app.config")
            for where, steps in app.steps.items():
                self.steps[where].update(steps)

        def add_defaults(self, settings: Any) -> None:
            """What the suite sets wins, as it does where there are no other settings but Celery's."""
            self.conf.update(settings)

    vars(testing)["Celery"] = SuitesApp
