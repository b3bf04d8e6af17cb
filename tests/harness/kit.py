"""An app of the kit with the settings of an environment, in this process."""

import os
import runpy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from app import App
from celery_kit.base.target import ROOT


def kit(environ: Mapping[str, str], name: str = "of-a-test") -> Any:
    """A new app of the kit, with settings from `environ`. Normally a process has one app, which reads them once."""
    with patch.dict(os.environ, environ):
        app = App(name, set_as_current=False)
        app.config_from_object(SimpleNamespace(**runpy.run_path(str(ROOT / "app/config.py"))))
        app.conf.finalize()  # type: ignore[attr-defined,unused-ignore]
    return app
