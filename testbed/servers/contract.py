"""What the package of a broker with a server provides for the tests and the benchmark."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from celery import Celery

from celery_kit.base.choices import secure
from celery_kit.brokers.contract import tls
from celery_kit.operate.stacks import certificates

Command = tuple[str, ...]
#: The users that servers have, and the password that tests and the benchmark give both. A stack of `make up` makes its own.
APP, ADMIN, PASSWORD = "kit", "admin", "kit"
#: With SECURE set, stacks of tests are as those of `make up` with it, and what tests ask of them goes over TLS too.
SECURE = secure()
TLS_FOLDER = certificates.FOLDER / "client"
if SECURE:
    certificates.variables()  # makes them
    os.environ["TLS_FOLDER"] = str(TLS_FOLDER)  # for the processes of this machine
#: What HTTP clients trust.
TRUSTED = str(TLS_FOLDER / "ca.pem") if SECURE else True


def secured(url: str, folder: str | Path = TLS_FOLDER) -> str:
    """The URL of a stack's server as a client needs it that finds certificates in `folder`: with SECURE, that of TLS.

    Names of servers of the tests alone are in no certificate.
    """
    ends = tls(os.environ).replace(quote(str(TLS_FOLDER)), str(folder))
    if urlsplit(url).hostname not in certificates.NAMES:
        ends = ends.replace("ssl_check_hostname=true", "ssl_check_hostname=false")
    return f"{url.replace('://', 's://', 1)}{ends}" if ends else url


#: The host's port for one of the container's.
Port = Callable[[int], int]


@dataclass(frozen=True)
class Container:
    """The container of a server, from the same image and configuration as the stacks'.

    `image`: the variable that names it, and its default. `data`: the folder of its data. `files`: paths on the host and inside.
    `passwords`: the variables that give its users their passwords.
    """

    image: tuple[str, str]
    data: str
    uid: int
    files: dict[str, str]
    passwords: tuple[str, ...]
    command: Command = ()
    environment: dict[str, str] = field(default_factory=dict)
    #: Further ports that a test uses.
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Faults:
    """How to cause faults on a server.

    `memory`: commands that begin and end its memory alarm. `leave`: bytes that are free on a full disk; 0 for a server that
    notices failing writes, its own limit for one that watches the free space. `no_connections(port)`: closes all connections,
    refuses new ones, and returns a function that accepts them again. `quiet`: seconds without any progress after which a
    message counts as lost. `restore_after`: plain Celery's visibility timeout in these tests, in seconds, if it has one.
    """

    memory: tuple[Command, Command]
    leave: int
    no_connections: Callable[[Port], Callable[[], Any]]
    quiet: float
    restore_after: int | None = None


@dataclass(frozen=True)
class Server:
    """How a broker of a stack is reached: the port that it listens on, and what its URL ends with.

    `default`: the namespace that the stack itself uses. `namespace(number, port)`: creates an empty one; `version(port)`: the
    product and its release. The argument `port` is a function that returns the host's port for one of the container's.
    """

    url: str
    port: int
    default: str
    namespace: Callable[[int, Port], str]
    version: Callable[[Port], str]
    container: Container
    faults: Faults
    #: The services of its compose file that are the broker: the nodes of a cluster, or one.
    hosts: tuple[str, ...] = ("broker",)
    #: The services that these send their clients to.
    nodes: tuple[str, ...] = ()
    #: Requeue the unacknowledged messages of a killed worker now. A broker that notices closed connections does it by itself.
    restore: Callable[[Celery], None] = lambda _: None
    #: Put items that are no messages into a queue, with the server's own client. Returns their number.
    put_raw: Callable[[Celery, str], int] = lambda _app, _queue: 0
