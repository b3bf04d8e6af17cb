"""Celery's command line in a process that has no folder for temporary files: `python -m tests.operator.no_temporary …`."""

import sys
import tempfile

from celery.__main__ import main


def nowhere() -> list[str]:
    """A read-only root without a tmpfs."""
    return ["/proc/none"]


if __name__ == "__main__":
    vars(tempfile)["_candidate_tempdir_list"] = nowhere
    sys.argv[0] = "celery"
    main()
