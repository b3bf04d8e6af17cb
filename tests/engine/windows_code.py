"""Run the code in its argument, like `python -c`, in the interpreter of tests/engine/windows.py."""

import sys

if __name__ == "__main__":
    exec(sys.argv[1])  # code of a test
