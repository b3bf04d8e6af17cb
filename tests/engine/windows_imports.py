"""Import every module of the app except for those in its arguments. Prints each that cannot be imported, and why."""

import importlib
import pkgutil
import sys

import app
import celery_kit

if __name__ == "__main__":
    for module in (*pkgutil.walk_packages(app.__path__, "app."), *pkgutil.walk_packages(celery_kit.__path__, "celery_kit.")):
        if module.name not in sys.argv[1:]:
            try:
                importlib.import_module(module.name)
            except (Exception, SystemExit) as error:
                print(f"{module.name}: {error!r}")
