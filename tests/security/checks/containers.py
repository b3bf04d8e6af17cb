"""What a container of a stack can do, and what its image holds."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from uuid import uuid4

from tests.security.checks.contract import Attempt, Check, Plant, Subject, container, instead
from tests.security.test_containers import CHECKS, Running, docker, started_carelessly

#: What a task tries, or a page that was taken over. Each prints a word if it can.
PROGRAMS = {
    "opens a raw socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); print('opened')",
    "makes a device": "import os, stat; os.mknod('/dev/shm/d', 0o600 | stat.S_IFCHR, os.makedev(1, 3)); print('made')",
    "gives a file to another user": "import os; open('/dev/shm/g', 'w'); os.chown('/dev/shm/g', 1234, 1234); print('given')",
    "becomes root": "import os; os.setuid(0); print('became')",
    "becomes another user": "import os; os.setuid(4321); print('became')",
    "adds a user": "open('/etc/passwd', 'a'); print('opened')",
    "changes a program on PATH": "import shutil; open(shutil.which('sh'), 'r+b'); print('opened')",
    "puts a package where Python finds it": (
        "import os, sys; found = [one for one in sys.path if os.path.isdir(one) and os.access(one, os.W_OK)]; print(*found)"
    ),
    "runs a program that it has written to /tmp": (
        "import os, subprocess; open('/tmp/own', 'w').write('#!/bin/sh\\necho ran'); os.chmod('/tmp/own', 0o755);"
        "print(subprocess.run(['/tmp/own'], capture_output=True, text=True).stdout)"
    ),
    "mounts a file system": (
        "import ctypes; print('' if ctypes.CDLL(None).mount(b'x', b'/mnt', b'tmpfs', 0, None) else 'mounted')"
    ),
    "changes the machine's name": "import socket; socket.sethostname('other'); print('changed')",
}


def of_each(check: Callable[[Running], object]) -> Attempt:
    """An attempt: what is found in each container, by its service."""
    return lambda subject: {one.service: found for one in subject.containers if (found := check(one))}


def program(code: str) -> Attempt:
    """An attempt: what a program prints in each container that runs Python."""

    def attempt(subject: Subject) -> dict[str, str]:
        said = {one.service: docker("exec", one.name, "python", "-c", code, check=False) for one in subject.with_python}
        return {service: text for service, text in said.items() if text}

    return attempt


def changes_code(subject: Subject) -> dict[str, str]:
    """An attempt: the user that runs the app's code can write to it, as its file is in the image."""
    line = "find /srv -name '*.py' -writable 2>/dev/null | head -3; touch /srv/x 2>/dev/null && echo /srv"
    return {one.service: found for one in subject.with_python if (found := one.sh(line))}


@contextmanager
def careless(subject: Subject) -> Iterator[Subject]:
    """A container as it is often started."""
    with started_carelessly() as one:
        yield replace(subject, containers=[one])


@contextmanager
def as_root(subject: Subject) -> Iterator[Subject]:
    """The image of a worker, as root and privileged."""
    image = subject.service("worker").facts["Config"]["Image"]
    with container("--user", "0", "--privileged", "--entrypoint", "sleep", image, "600") as one:
        yield instead(replace(subject, containers=[]), "worker", one)


def images(subject: Subject) -> dict[str, str]:
    """The images whose content is the user's or the kit's, each once, by service: of workers and pages, not of servers."""
    found = {one.facts["Config"]["Image"]: one.service for one in subject.containers if one.is_the_kits}
    return {service: image for image, service in found.items()}


def in_image(line: str) -> Attempt:
    """An attempt: what a line of shell prints in a container of each image, started without an option, as the image's user."""

    def attempt(subject: Subject) -> dict[str, str]:
        found = {
            service: docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", line, check=False)
            for service, image in images(subject).items()
        }
        return {service: said for service, said in found.items() if said}

    return attempt


def secret_in_image(subject: Subject) -> list[str]:
    """An attempt: an image's history or settings show a password, or where one would be."""
    found = []
    for service, image in images(subject).items():
        shown = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
        shown += json.dumps(json.loads(docker("image", "inspect", image))[0]["Config"])
        words = ("PASSWORD=", "SECRET=", "TOKEN=", "://guest:", "--index-url")
        found += [f"{service}: {word}" for word in words if word in shown]
    return found


def image_with(lines: str) -> Callable[[Subject], AbstractContextManager[Subject]]:
    """Makes an image with more lines of a Dockerfile, and a container of it in the place of all others."""

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        base, name = subject.service("worker").facts["Config"]["Image"], f"celery-kit-planted:{uuid4().hex[:12]}"
        words = ("docker", "build", "--quiet", "--tag", name, "-")
        subprocess.run(words, input=f"FROM {base}\n{lines}\n", text=True, check=True, capture_output=True, timeout=120)
        try:
            with container("--entrypoint", "sleep", name, "600") as one:
                yield instead(replace(subject, containers=[]), "worker", one)
        finally:
            docker("image", "rm", "--force", name)

    return made


WRITABLE = "find /srv /opt /usr -xdev -type f -writable 2>/dev/null | head -3"
KEY = "printf -- '-----BEGIN PRIVATE KEY-----'"
CARELESS = Plant("a container as it is often started", careless)
PRIVILEGED = Plant("the worker's image, as root and privileged", as_root)
ROOT_IMAGE = Plant("an image with `USER 0`", image_with("USER 0"))
ROWS = (
    *(Check("containers", what, of_each(check), CARELESS) for what, check in CHECKS.items()),
    *(Check("containers", f"a task {what}", program(code), PRIVILEGED) for what, code in PROGRAMS.items()),
    Check("containers", "a task changes the code that runs after it", changes_code, PRIVILEGED),
    Check("images", "it runs as root, if nobody says otherwise", in_image("[ $(id -u) != 0 ] || echo root"), ROOT_IMAGE),
    Check(
        "images",
        "its own user can change its code",
        in_image(WRITABLE),
        ROOT_IMAGE,
    ),
    Check(
        "images",
        "its own user can change its folders of programs",
        in_image("for one in / /usr/bin /usr/local/bin /opt /srv /etc; do [ ! -w $one ] || echo $one; done"),
        ROOT_IMAGE,
    ),
    Check(
        "images",
        "it has a compiler or a program that fetches others",
        in_image("for one in gcc cc ld make curl wget git ssh nc; do command -v $one; done"),
        Plant("an image with one more program", image_with("USER 0\nRUN printf x > /usr/bin/curl && chmod 755 /usr/bin/curl")),
    ),
    Check(
        "images",
        "its history or settings show a password",
        secret_in_image,
        Plant("an image with `ENV APP_PASSWORD=x`", image_with("ENV APP_PASSWORD=x")),
    ),
    Check(
        "images",
        "it has the configuration or the cache of pip",
        in_image("ls -d /etc/pip.conf /root/.config/pip /root/.cache/pip /srv/.cache /srv/.netrc 2>/dev/null"),
        Plant("an image with a `pip.conf`", image_with("USER 0\nRUN printf x > /etc/pip.conf")),
    ),
    Check(
        "images",
        "anybody can read a private key in it",
        in_image(
            "grep -rlsIE '^-----BEGIN( [A-Z]+)? PRIVATE KEY-----' /srv /opt /usr/local /etc /root /home 2>/dev/null | head -3"
        ),
        Plant(
            "an image with a key",
            image_with(f"USER 0\nRUN {KEY} > /srv/key && chmod 644 /srv/key"),
        ),
    ),
)
