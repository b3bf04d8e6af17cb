"""Start Flower: `python -m celery_kit.operate.look.monitor [options of flower]`.

Flower requires the user MONITOR_USER and the password in MONITOR_PASSWORD_FILE. It gets the password by its own variable,
FLOWER_BASIC_AUTH, so that no list of processes shows it.
"""

import os
import sys
from pathlib import Path

from celery_kit.base.refusals import refuse
from celery_kit.worker.start import APP


def password() -> str:
    """The password in MONITOR_PASSWORD_FILE. Refuses a file that is missing or empty."""
    file = os.environ.get("MONITOR_PASSWORD_FILE") or refuse("MONITOR_PASSWORD_FILE names no file: Flower is not started open")
    try:
        found = Path(file).read_text().strip()
    except OSError as error:
        refuse(f"MONITOR_PASSWORD_FILE={file} cannot be read: {error.strerror}")
    return found or refuse(f"MONITOR_PASSWORD_FILE={file} is empty: Flower is not started open")


def main() -> None:
    """Replace this process with Flower."""
    os.environ["FLOWER_BASIC_AUTH"] = f"{os.environ.get('MONITOR_USER') or 'kit'}:{password()}"
    argv = [sys.executable, "-m", "celery", "-A", APP, "flower", "--address=0.0.0.0", "--port=5555", *sys.argv[1:]]
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
