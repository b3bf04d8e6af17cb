"""A port that forwards to a server, and whose connections can be cut."""

import threading
from contextlib import suppress
from socket import SHUT_RDWR, create_connection, create_server, socket
from ssl import SSLContext


class Proxy:
    """A proxy. `refused`: connections that were closed at once, because it is shut. `tls`: the context to decrypt with."""

    def __init__(self, host: str, port: int, tls: SSLContext | None = None) -> None:
        self.target = (host, port)
        self.tls = tls
        self.server = create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        self.shut = False
        self.refused = 0
        self.dead: set[socket] = set()
        self.ends: list[socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self, shut: bool = False) -> None:
        """Close all connections. With `shut`, also close new ones."""
        self.shut = shut
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(SHUT_RDWR)
        self.ends.clear()

    def stall(self) -> None:
        """Forward nothing more on the existing connections, without closing them."""
        self.dead.update(self.ends)

    def close(self) -> None:
        self.server.close()
        self.cut(True)

    def hear(self, source: socket, data: bytes) -> None:
        """Called with the data from `source`. Subclasses may override it."""

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self.server.accept()
                if self.shut:
                    self.refused += 1
                    one.close()
                    continue
                if self.tls:
                    one = self.tls.wrap_socket(one, server_side=True)
                other = create_connection(self.target)
                self.ends += [one, other]
                for ends in ((one, other), (other, one)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket, target: socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self.hear(source, data)
                if source not in self.dead:
                    target.sendall(data)
        if source not in self.dead:
            with suppress(OSError):
                target.shutdown(SHUT_RDWR)
