"""`make push`: this checkout's images in a registry, and a file that pins them by digest. `make up PINS=` runs what it pins."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

from celery_kit.base.choices import VERSION
from celery_kit.base.files import read_regular
from celery_kit.base.refusals import refuse, why_not_writable
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate.groups import Group
from celery_kit.operate.stacks.codebase import Codebase
from celery_kit.operate.stacks.docker import answered, last_line, run
from celery_kit.operate.stacks.images import build_services, of_python, prepare, unversioned

#: The file that deployments pin, and the most bytes of it.
PINS, MOST = "pins.json", 1024 * 1024
#: How the labels of an image begin that OCI has named.
OCI = "org.opencontainers.image."
#: The images beside those of pools, and the service that has the build of each.
OTHERS = {"mail": "mail", "monitor": "flower"}
#: A registry's host, with its port, and a name below it.
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")
_PLATFORM = re.compile(r"linux/[a-z0-9]+(/v[0-9])?")
_PINNED = re.compile(r"[^\s$@]+@sha256:[0-9a-f]{64}")
#: What a registry's refusal means, by a word of it, and what to do.
_HINTS = {
    "no basic auth credentials": "'docker login {host}' first",
    "unauthorized": "'docker login {host}' first",
    "denied": "'docker login {host}' with an account that may push there",
    "certificate": "put the registry's authority into /etc/docker/certs.d/{host}/ca.crt",
    "HTTP response to HTTPS client": "the registry has no TLS: give it some, or name it in insecure-registries of the engine",
}


def push(
    registry: str, tag: str, platforms: Iterable[str], pools: Iterable[str], codebase: Codebase | None, file: Path
) -> None:
    """Build the images of pools, and those beside them, push them, and write the file that pins them.

    Refuses a name that is none, a platform that the engine cannot build for, and what the registry refuses.
    """
    check_name(registry, tag)
    if why := why_not_writable(file):
        refuse(f"PINS={file} cannot be written: {why}")
    os.environ.pop("APP_VERSION", None)  # the tag is a version, and the images have names of their own here
    wanted = list(dict.fromkeys(platforms))
    prepare()
    _check_platforms(wanted)
    about = labels(codebase.source if codebase else ROOT, tag)
    images = {}
    for name in (*pools, *OTHERS):
        place = unversioned(name)
        images[place] = _pushed(f"{registry}:{place}{tag and f'-{tag}'}", name, wanted, about, codebase)
        print(images[place], flush=True)
    found = {"version": about.get("version", ""), "revision": about.get("revision", ""), "platforms": wanted, "images": images}
    file.write_text(f"{json.dumps(found, indent=2)}\n")


def checked(tag: str) -> str:
    """The version that TAG names. Refuses one that cannot be a part of an image's tag."""
    if tag and not re.fullmatch(VERSION, tag):
        refuse(f"TAG={tag} is not allowed; letters, digits, _, . and -, 80 at most")
    return tag


def check_name(registry: str, tag: str) -> None:
    """Refuse a registry or a version that cannot be a part of an image's name."""
    if not _NAME.fullmatch(registry):
        refuse(f"REGISTRY={registry} is not allowed; a host and a name in small letters, such as registry.example.com/shop")
    checked(tag)


def labels(folder: Path, tag: str) -> dict[str, str]:
    """What an image says of itself, by the last word of OCI's names: version, revision, source, created.

    `folder`: of the code. The time is the commit's, so that a second push of a commit is the same image; with changes that are
    not committed it is now.
    """

    def git(*words: str) -> str:
        return run("git", "-C", str(folder), *words, capture_output=True).stdout.strip()

    revision, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found = {
        "version": tag or git("describe", "--always", "--tags", "--dirty"),
        "revision": f"{revision}{'-dirty' * dirty}" if revision else "",
        "source": _without_password(git("config", "--get", "remote.origin.url")),
        "created": now if dirty or not revision else git("log", "-1", "--format=%cI"),
    }
    return {name: value for name, value in found.items() if value}


def pins(given: str) -> dict[str, str]:
    """The images that a file pins, by tag, as :func:`push` has written it. Empty without a file. Refuses one that is wrong."""
    return _read(given)[1] if given else {}


def _read(given: str) -> tuple[str, dict[str, str]]:
    """The version of the images that a file pins, and the images by tag. Refuses a file that is wrong."""
    try:
        about = json.loads(read_regular(ROOT / given, MOST))
        found = about["images"]
        wrong = next((str(one) for one in found.values() if not _PINNED.fullmatch(str(one))), None)
    except OSError as error:
        refuse(f"PINS={given} cannot be read: {error.strerror}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        refuse(f"PINS={given} is not a file of 'make push'")
    if wrong is not None:
        refuse(
            f"PINS={given} has {wrong[:200]!r}, which is no image with a digest (name@sha256:…); 'make push' writes the file"
        )
    return str(about.get("version")), {str(tag): str(one) for tag, one in found.items()}


def pinned(images: Mapping[str, str], name: str, given: str) -> str:
    """The image that a file pins for a pool, `mail` or `monitor`. Refuses if there is none. `given`: the file as typed."""
    tag = unversioned(name)
    if tag not in images:
        refuse(f"PINS={given} has no image {tag}; it has {', '.join(images)}: 'make push' without POOL= pushes all")
    return images[tag]


def of_services(given: str, groups: Sequence[Group], monitored: bool) -> dict[str, str]:
    """The image of each service of a stack that files pin, by the service's name. Empty without a file.

    `given`: the files as typed, between commas. A group with a version has the images of the file of this version, all else
    those of the first file. Refuses a version that no file has.
    """
    files = [_read(one) for one in filter(None, given.split(","))]
    if not files or not files[0][1]:
        return {}

    def of(group: Group) -> Mapping[str, str]:
        found = next((images for version, images in files if version == (group.version or files[0][0])), None)
        if found is None:
            has = f"it has {', '.join(version for version, _ in files)}; name a file of each, as pins.json,new.json"
            refuse(f"group {group.name}: PINS={given} has no version {group.version}; {has}")
        return found

    workers = {"worker": groups[0], "beat": groups[0]} | {one.service: one for one in groups}
    others = {"mail": "mail"} | ({"flower": "monitor", "exporter": "monitor"} if monitored else {})
    found = {service: pinned(of(group), group.pool, given) for service, group in workers.items()}
    return found | {service: pinned(files[0][1], tag, given) for service, tag in others.items()}


def of_versions(groups: Iterable[Group], images: Mapping[str, str]) -> None:
    """Pull the images of groups with a version that the engine does not have. `images`: by service. Refuses if that fails."""
    for group in groups:
        if group.version and run("docker", "image", "inspect", (ref := images[group.service]), capture_output=True).returncode:
            print(f"pulling {ref}", file=sys.stderr, flush=True)
            if (done := run("docker", "pull", "--quiet", ref, capture_output=True)).returncode:
                how = f"'make images TAG={group.version} POOL={group.pool}' in a checkout of this version makes it"
                refuse(f"group {group.name}: there is no image {ref} ({last_line(done.stderr)}); {how}")


def pull(images: Iterable[str]) -> None:
    """Pull images that the engine does not have. Refuses one that the registry does not give."""
    for ref in dict.fromkeys(images):
        if run("docker", "image", "inspect", ref, capture_output=True).returncode:
            print(f"pulling {ref}", file=sys.stderr, flush=True)
            if (done := run("docker", "pull", "--quiet", ref, capture_output=True)).returncode:
                _refused(ref, "pulled", done.stderr or done.stdout)


def _refused(ref: str, what: str, output: str) -> NoReturn:
    why = last_line(output)
    hint = next((f"; {text}" for word, text in _HINTS.items() if word in why), "")
    refuse(f"{ref} could not be {what}: {why}{hint.format(host=ref.partition('/')[0])}")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.scheme else url


def _check_platforms(wanted: list[str]) -> None:
    """Refuse platforms that the engine cannot build for: another machine's code needs emulation."""
    if wrong := next((one for one in wanted if not _PLATFORM.fullmatch(one)), None):
        refuse(f"PLATFORMS={wrong} is not allowed; names such as linux/amd64,linux/arm64")
    if not wanted:
        return
    shown = run("docker", "buildx", "inspect", capture_output=True)
    if shown.returncode:
        refuse(f"PLATFORMS needs buildx: {last_line(shown.stderr)}; install docker-buildx, or leave PLATFORMS out")
    here = re.findall(r"linux/[a-z0-9/]+", " ".join(re.findall(r"^Platforms:(.*)$", shown.stdout, re.MULTILINE)))
    if missing := [one for one in wanted if one not in here]:
        words = f"'docker run --privileged --rm tonistiigi/binfmt --install {missing[0].split('/')[1]}' adds it"
        refuse(f"PLATFORMS={missing[0]}: emulation is missing, this engine builds for {', '.join(here)}; {words}")


def _pushed(ref: str, name: str, platforms: list[str], about: Mapping[str, str], codebase: Codebase | None) -> str:
    """Build and push an image, for one platform after the other. Gives it with its digest."""
    if len(platforms) < 2:
        _build(ref, name, platforms, about, codebase)
        return _push(ref)
    parts = []
    for platform in platforms:
        one = f"{ref}-{platform.removeprefix('linux/').replace('/', '-')}"
        _build(one, name, [platform], about, codebase)
        parts.append(_push(one))
    return index(ref, parts)


def _build(ref: str, name: str, platforms: list[str], about: Mapping[str, str], codebase: Codebase | None) -> None:
    print(f"building {ref}", file=sys.stderr, flush=True)
    service = OTHERS.get(name, "worker")
    names = {f"{OCI}{word}": value.replace("$", "$$") for word, value in about.items()}
    version = re.sub(r"[^A-Za-z0-9_.-]", "-", about.get("version", "")).lstrip("_.-")[:80]  # a tag of git's may have a slash
    build = {"labels": names, "args": {"APP_VERSION": version}}
    own = {"image": ref, "build": {**build, **({"platforms": platforms} if platforms else {})}}
    file = ROOT / ".kit/push.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"services": {service: own}}))
    broker = next(one.compose_file for one in BROKERS.values() if one.compose_file)  # the build is the same in each
    pool = {} if name in OTHERS else {"POOL": name}
    environ = {**os.environ, **pool, **of_python(), **(codebase.environ() if codebase else {})}
    files = ("-p", "celery-kit", "--project-directory", str(ROOT), "-f", broker, "-f", str(file))
    build_services(files, [service], ref, codebase, environ)


def _push(ref: str) -> str:
    done = run("docker", "push", ref, capture_output=True)
    found = re.search(r"digest: (sha256:[0-9a-f]{64})", done.stdout)
    if done.returncode or not found:
        _refused(ref, "pushed", done.stderr or done.stdout)
    return f"{ref}@{found[1]}"


def index(ref: str, parts: list[str]) -> str:
    """Give images of several platforms, which a registry has, one name there. Gives it with its digest."""
    made = run("docker", "buildx", "imagetools", "create", "--tag", ref, *parts, capture_output=True)
    shown = run("docker", "buildx", "imagetools", "inspect", ref, "--format", "{{json .Manifest}}", capture_output=True)
    if made.returncode or shown.returncode:
        refuse(f"{ref} could not be made of its platforms: {last_line(made.stderr if made.returncode else shown.stderr)}")
    return f"{ref}@{answered(shown)['digest']}"
