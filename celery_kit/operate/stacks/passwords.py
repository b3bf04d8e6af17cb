"""The roles of a stack's servers: their passwords, which each server makes itself (its start.sh), and processes with them.

A container of the stack reads those of its own role from a volume. A person's commands ask the servers for theirs.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.docker import Facts, RunOptions, ask, last_line, run
from celery_kit.operate.stacks.ports import service_of

#: By the value of RENEW, what a server's start.sh is asked to do, and what was done then.
RENEWALS = {
    "1": ("renew", "has new passwords; the former ones are valid until 'make passwords RENEW=end'"),
    "end": ("end-former", "has ended the former passwords"),
}
START = "/usr/local/bin/start.sh"
#: Seconds that a server may take for it: RabbitMQ starts a tool of its own.
PATIENCE = 120
#: How often a server is asked for an account: a busy engine may lose an answer.
TRIES = 3
#: What a container of the same image has of its own.
OWN = ("PATH", "HOME", "HOSTNAME")


def _servers(inspected: list[Facts]) -> dict[str, Facts]:
    """The running servers of a stack with users by role, by their KEY: nodes of one server have the same accounts."""
    running = [
        one for one in inspected if one["State"]["Running"] and any(mount["Destination"] == START for mount in one["Mounts"])
    ]
    running.sort(key=lambda one: (not one["State"].get("Paused"), service_of(one)))  # the last of a KEY is asked
    return {_key(one): one for one in running}


def _key(server: Facts) -> str:
    environ: list[str] = server["Config"]["Env"]
    return next(line.removeprefix("KEY=") for line in environ if line.startswith("KEY="))


def accounts(inspected: list[Facts], role: str) -> dict[str, str]:
    """The variables with the accounts of a role: a password, and its user on a second line.

    None of a server that is down or frozen. Refuses if one does not tell: without a password, the server would refuse later.
    """
    servers = {name: one for name, one in _servers(inspected).items() if not one["State"].get("Paused")}
    found = {}
    for name, server in (("BROKER", servers.get("broker")), ("RESULTS", servers.get("results") or servers.get("broker"))):
        if server:
            found[f"{name}_PASSWORD"] = _account(server, role)
    return found


def _account(server: Facts, role: str) -> str:
    for _ in range(TRIES):
        said = ask("docker", "exec", server["Id"], START, "account", role)
        password, _, user = said.stdout.strip().partition("\n")
        if said.returncode == 0 and password and user:
            return f"{password}\n{user}"
    reason = last_line(said.stderr or said.stdout)
    return refuse(f"{server['Name'].lstrip('/')} does not tell the account of {role}: {reason}; 'make ps' shows its state")


def renew(inspected: list[Facts], how: str) -> list[str]:
    """Have the running servers make new passwords, or end the former ones. Returns a line for each. Refuses if one fails."""
    asked, said = RENEWALS[how]
    lines = []
    for one in _servers(inspected).values():
        done, name = (
            run("docker", "exec", one["Id"], START, asked, capture_output=True, timeout=PATIENCE),
            one["Name"].lstrip("/"),
        )
        if done.returncode:
            refuse(f"{name} has not done it ({asked}): {last_line(done.stderr or done.stdout)}")
        lines.append(f"{name} {said}")
    return lines or refuse("no server of a stack runs here; 'make up' starts one, which makes its passwords itself")


def beside(one: Facts, given: Mapping[str, str], *argv: str, **options: Unpack[RunOptions]) -> subprocess.CompletedProcess[str]:
    """Run `python -m …` in a container like `one`, with its settings, files and networks, and with other accounts.

    A process in `one` itself could be watched by the code of tasks that runs there.
    """
    theirs = dict(line.split("=", 1) for line in one["Config"]["Env"] if "=" in line)
    environ = {name: value for name, value in theirs.items() if name not in OWN} | {**given}
    words = ["docker", "run", "--rm", "-it" if sys.stdin.isatty() and not options else "-i", "--entrypoint", "python"]
    words += ["--network", f"container:{one['Id']}", "--volumes-from", f"{one['Id']}:ro", "--read-only", "--tmpfs", "/tmp"]
    words += [
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        *(word for name in environ for word in ("--env", name)),
    ]
    return run(*words, one["Image"], "-m", *argv, env={**os.environ, **environ}, **options)


def monitor_password() -> Path:
    """The file with the password of the user `kit` of the monitor's pages. It is created with a random one if it is missing."""
    file = ROOT / (os.environ.get("MONITOR_PASSWORD_FILE") or ".kit/monitor/password")
    if not file.exists():
        _make_secret(file)
    print(f"Flower and Prometheus (and Grafana) ask for user kit and the password in {file}", file=sys.stderr)
    return file


def _make_secret(file: Path) -> None:
    """Write a password into a folder that no other user can enter. The file itself must be readable by the images' users."""
    folder = file.parent
    try:
        if folder.is_dir() and folder.stat().st_mode & 0o077:
            instead = "write a password into it, or name a file in a folder that is not there yet"
            refuse(f"MONITOR_PASSWORD_FILE={file} is not there, and others can enter its folder: {instead}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(secrets.token_urlsafe(18))
        file.chmod(0o644)
    except OSError as error:
        refuse(f"MONITOR_PASSWORD_FILE={file} cannot be made: {error.strerror}")
