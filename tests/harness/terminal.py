"""A program in a terminal: what it shows, what is typed."""

import os
import pty
import signal
import subprocess
from pathlib import Path
from threading import Thread

from tests.harness.waiting import until


def _hears_ctrl_c() -> None:
    """As in a terminal: what a shell starts in the background ignores SIGINT, and so would its children, tests among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`text`: what it showed since something was last typed. `environ`: all of its environment."""

    def __init__(self, *argv: str, cwd: Path, environ: dict[str, str]) -> None:
        self.text = ""
        self._here, its = pty.openpty()
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={"TERM": "xterm", **environ},
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            preexec_fn=_hears_ctrl_c,
        )
        os.close(its)
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while words := os.read(self._here, 4_096):
                self.text += words.decode(errors="replace")
        except OSError:  # it ended
            os.close(self._here)

    def shows(self, words: str, seconds: float = 60) -> None:
        """Wait until it has shown `words`."""
        until(f"it shows {words!r}", lambda: words in self.text, seconds)

    def type(self, line: str) -> None:
        self.text = ""
        os.write(self._here, f"{line}\n".encode())
