"""Runs the code that its argument is, as `python -c` does: in an interpreter that tests/engine/windows.py has made."""

import sys

if __name__ == "__main__":
    exec(sys.argv[1])  # a test's own
