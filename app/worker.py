"""Start a worker from the profile: `python -m app.worker [options of celery worker]`.

The pool goes on the command line, the only place where Celery patches the sockets early enough for eventlet and gevent,
and the process is replaced by Celery's own, so that PID 1 of a container is the worker and gets its signals.
"""

import os
import sys

from app.pools import Pool
from app.profile import Profile


def command(pool: Pool, options: list[str], banner: bool = True) -> list[str]:
    """The command line of a worker on `pool`. `options` come last and win."""
    celery = [sys.executable, "-m", "celery", "-A", "app", *([] if banner else ["--quiet"])]
    return [*celery, "worker", "--pool", pool.name, *pool.worker_flags, *options]


def main() -> None:
    profile = Profile.from_environ()
    options = ["--loglevel", os.environ.get("LOGLEVEL") or "INFO", *sys.argv[1:]]
    argv = command(profile.pool, options, banner=profile.log_format == "text")  # none between JSON's lines
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
