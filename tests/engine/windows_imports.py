"""Imports every module of the app that its arguments do not name; prints each that cannot be imported, and why."""

import importlib
import pkgutil
import sys

import app

if __name__ == "__main__":
    for module in pkgutil.walk_packages(app.__path__, "app."):
        if module.name not in sys.argv[1:]:
            try:
                importlib.import_module(module.name)
            except (Exception, SystemExit) as error:
                print(f"{module.name}: {error!r}")
