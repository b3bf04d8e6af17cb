"""The app that this process works for, and the folder of its project."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from celery import Celery, _state
from celery.app.utils import find_app
from celery.exceptions import ImproperlyConfigured

from celery_kit.base.refusals import refuse

if TYPE_CHECKING:
    from celery_kit.kit import Kit

_HERE = Path(__file__).resolve().parents[2]
#: The project's folder: the checkout that holds this package, or the current folder where the package is installed.
ROOT = _HERE if (_HERE / "Makefile").exists() else Path.cwd()
ALLOWED = "a module, as `shop` or `shop.celery`, or module:name, as `shop.celery:app`, of a Celery app (docs/adopt.md)"


def name() -> str:
    """The app of this project, in the form that `celery -A` takes: CELERY_APP, or `app`."""
    return os.environ.get("CELERY_APP") or "app"


def find(given: str) -> "Kit":
    """Import the Celery app that `given` names, in the form that `celery -A` takes, and make it the current app.

    Refuses (one line, exit code 2) what cannot be imported, and what is not an app.
    """
    if (here := str(Path.cwd())) not in sys.path:  # a console script has its own folder there
        sys.path.insert(0, here)
    try:
        found: Kit = find_app(given)  # type: ignore[assignment]  # the kit is installed in it, or a tool's first use refuses it
    except Exception as error:  # a module may raise anything
        reason = next(iter(str(error).splitlines()), "")
        refuse(f"CELERY_APP={given} cannot be imported ({type(error).__name__}: {reason}); allowed: {ALLOWED}")
    if not isinstance(found, Celery):
        refuse(f"CELERY_APP={given} is no Celery app, but of type {type(found).__name__}; allowed: {ALLOWED}")
    found.set_current()
    return found


def current() -> "Kit":
    """The current app of this process. Raises ImproperlyConfigured if the kit is not installed in it."""
    app: Kit = _state.get_current_app()  # type: ignore[assignment]  # checked next
    if not hasattr(type(app), "spooled"):  # the value itself may raise
        raise ImproperlyConfigured(
            "the app of this process is not one of celery-kit: import the module that makes it, by Kit() or install()"
        )
    return app
