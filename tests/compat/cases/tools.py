"""The kit's tools on the app of a comparison: `python -m tests.compat.cases.tools status`."""

import sys
from importlib import import_module

if __name__ == "__main__":
    import_module("tests.compat.side")
    import_module(f"celery_kit.operate.look.{sys.argv.pop(1)}").main()
