"""What is known to be vulnerable, or to have an update: the locked Python packages, and the Debian packages of an image."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from celery_kit.operate.stacks.docker import last_line
from deploy.supply.archive import Image
from deploy.supply.packages import packages

#: The locks of what is deployed, and of the machine that deploys it.
LOCKS = ("worker", "eventlet", "gevent", "monitor", "mail", "local")
#: Run in the base image, by a user without rights: what apt offers for the packages of the record on its standard input.
APT = """
set -eu
mkdir -p /tmp/apt/lists/partial /tmp/apt/cache/archives/partial /tmp/apt/sources
cat > /tmp/status
cp /etc/apt/sources.list /etc/apt/sources.list.d/* /tmp/apt/sources/ 2>/dev/null || :
[ ! -f /tmp/apt/sources/sources.list ] || mv /tmp/apt/sources/sources.list /tmp/apt/sources/main.list
. /etc/os-release
# Without the security archive among them: the one beside the archive that they name.
mirror=$(grep -ohE 'https?://[^ ]+/debian/?( |$)' /tmp/apt/sources/* | sed -n '1s,/* *$,,p')
[ -z "$mirror" ] || grep -qs -e -security /tmp/apt/sources/* ||
    echo "deb $mirror-security $VERSION_CODENAME-security main" > /tmp/apt/sources/security.list
set -- -o Dir::State=/tmp/apt -o Dir::State::status=/tmp/status -o Dir::Cache=/tmp/apt/cache -o Dir::Etc::sourcelist=/dev/null \
    -o Dir::Etc::sourceparts=/tmp/apt/sources -o Debug::NoLocking=1 -o APT::Update::Error-Mode=any
apt-get "$@" -qq update >&2
# shellcheck disable=SC2046  # names
apt-cache "$@" policy $(sed -n 's/^Package: //p' /tmp/status)
"""


class SilentError(Exception):
    """A source of advisories does not answer. The text is a line for the user."""


def of_python(locks: Sequence[Path], service: str = "") -> tuple[list[str], list[str]]:
    """Known vulnerabilities of locked packages, a line each, and the packages that nothing is known of.

    `service`: the address of a server that answers as api.osv.dev/v1/query; empty: PyPI's advisories. Raises SilentError.
    """
    words = [sys.executable, "-m", "pip_audit", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    words += ["--vulnerability-service", "osv", "--osv-url", service] if service else []
    words += [word for lock in locks for word in ("--requirement", str(lock))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise SilentError(f"the advisories for Python packages cannot be read: {last_line(done.stderr)}") from None
    skipped = sorted({one["name"] for one in found if "skip_reason" in one})
    return sorted(set(_vulnerable(found))), skipped


def _vulnerable(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in found:
        for fault in one.get("vulns", ()):
            names = " ".join(dict.fromkeys((fault["id"], *fault.get("aliases", ()))))
            fixed = ", ".join(fault.get("fix_versions", ())) or "no version"
            yield f"{one['name']} {one['version']}: {names}, fixed in {fixed}"


def of_debian(image: Image, base: str) -> tuple[list[str], int]:
    """The updates for an image's Debian packages, a line each, and the number of packages. `base`: an image with apt.

    Raises SilentError.
    """
    record = "\n".join(text for path, text in sorted(image.texts.items()) if path.startswith("var/lib/dpkg/status"))
    limits = (
        "--user",
        "65534",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--read-only",
        "--tmpfs",
        "/tmp:mode=1777",
    )
    done = subprocess.run(
        ["docker", "run", "--rm", "--interactive", *limits, "--entrypoint", "sh", base, "-c", APT],
        input=record, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SilentError(f"Debian's package lists cannot be read: {last_line(done.stderr)}")
    return list(updates(done.stdout)), sum(one.kind == "debian" for one in packages(image))


def updates(policy: str) -> Iterator[str]:
    """The packages whose candidate is not the installed version, from what `apt-cache policy` prints."""
    for part in re.split(r"\n(?=\S)", policy):
        found = re.match(r"(\S+):\n +Installed: (\S+)\n +Candidate: (\S+)\n(.*)", part, re.DOTALL)
        if found and found[2] not in (found[3], "(none)"):
            offered = found[4].partition(f" {found[3]} ")[2].partition("***")[0]
            yield f"{found[1]} {found[2]}: {found[3]}{' (security)' if '-security' in offered else ''}"
