"""A program in a terminal, with its output and typed input."""

import os
import pty
import signal
import subprocess
from pathlib import Path
from threading import Thread

from tests.harness.waiting import until


def _hears_ctrl_c() -> None:
    """Reset SIGINT: a shell makes its background jobs ignore it, and their children, such as tests, inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A program in a terminal. `text`: its output since the last input. `environ`: its complete environment."""

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
        except OSError:  # it has exited
            os.close(self._here)

    def shows(self, words: str, seconds: float = 60) -> None:
        """Wait until its output contains `words`."""
        until(f"it shows {words!r}", lambda: words in self.text, seconds)

    def type(self, line: str) -> None:
        self.text = ""
        os.write(self._here, f"{line}\n".encode())
