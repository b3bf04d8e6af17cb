"""The app of the suite's worker, where that is a process of its own: `celery -A tests.upstream.worker worker`."""

import json
import os
from importlib import import_module

from celery.contrib.testing import app as testing

import tests.upstream.kit_app  # noqa: F401  # installs the kit in the apps of `testing`, where ENGINE says so

app = testing.TestApp(config=json.loads(os.environ["SUITE_SETTINGS"]), enable_logging=True)
app.set_current()
app.set_default()
tasks = import_module("t.integration.tasks")
app.register_task(tasks.ClassBasedAutoRetryTask())
