"""The signed statement about an image: SLSA provenance in an in-toto statement, in a DSSE envelope, with an Ed25519 key.

Formats: https://slsa.dev/spec/v1.0/provenance, https://github.com/in-toto/attestation/tree/main/spec/v1 and
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md.
"""

import base64
import binascii
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from deploy.supply.archive import Image

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
#: Where the images have which files of the checkout.
PLACES = {
    "srv/celery_kit": "celery_kit",
    "srv/app": "app",
    "srv/catcher.py": "deploy/mail/catcher.py",
    "usr/local/bin/healthy": "deploy/healthy.sh",
}


#: What images are built from.
FROM = ("app", "celery_kit", "deploy", "requirements")


class WrongError(Exception):
    """Something is not what was signed. The text is a line for the user."""


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with. Makes one, with its public half beside it, if the file is missing. Refuses what is no such key."""
    if not path.exists():
        return _new_key(path)
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        refuse(f"SIGN_KEY={path} can be read by other users (mode {mode:o}): chmod 600 {path}")
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        refuse(f"SIGN_KEY={path} is no private key in PEM without a passphrase: {error}")
    if not isinstance(key, Ed25519PrivateKey):
        refuse(f"SIGN_KEY={path} is a key of another kind; allowed: Ed25519 (openssl genpkey -algorithm ed25519)")
    return key


def _new_key(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except OSError as error:
        refuse(f"SIGN_KEY={path} cannot be made: {error.strerror}")
    return key


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """The public half of a key, as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_key(path: Path) -> Ed25519PublicKey:
    """The key to verify with. Refuses what is no such key."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else "no public key in PEM"
        refuse(f"VERIFY_KEY={path} cannot be used: {reason}")
    if not isinstance(key, Ed25519PublicKey):
        refuse(f"VERIFY_KEY={path} is a key of another kind; allowed: Ed25519")
    return key


def of(image: Image, papers: list[Path], base: str) -> dict[str, Any]:
    """The statement about an image of this checkout's commit. `papers`: its SBOM and licence list; `base`: its base image.

    Refuses an image whose code is not that of the commit.
    """
    commit = _commit(image)
    locks = sorted((ROOT / "requirements").glob("*.txt"))
    place = re.sub(r"//[^/@]*@", "//", _git("config", "--get", "remote.origin.url"))  # it may hold a password
    sources = [{"uri": f"git+{place or ROOT.name}", "digest": {"gitCommit": commit}}]
    files = [{"name": f"requirements/{lock.name}", "digest": _digest(lock)} for lock in locks]
    files += [{"name": "deploy/Dockerfile", "digest": _digest(ROOT / "deploy/Dockerfile")}]
    based = [{"name": base, "digest": {"sha256": _id(base)}}]
    subjects = [
        {"name": image.name, "digest": {"sha256": image.digest}},
        *({"name": one.name, "digest": _digest(one)} for one in papers),
    ]
    subjects += [{"name": place, "digest": {"sha256": digest}} for place, digest in _pushed(image.name)]
    definition = {
        "buildType": "https://docs.docker.com/build/buildkit/",
        "externalParameters": {"dockerfile": "deploy/Dockerfile", "image": image.name},
        "internalParameters": {"layers": image.layers, "created": image.config.get("created")},
        "resolvedDependencies": [*sources, *based, *files],
    }
    run = {"builder": {"id": "make sign, by the holder of the key"}, "metadata": {}}
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {"buildDefinition": definition, "runDetails": run},
    }


def _pushed(name: str) -> list[tuple[str, str]]:
    """Where an image has been pushed to, with its digest there, which is another one. For tools that ask a registry."""
    done = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", name], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout or "[]") if done.returncode == 0 else []
    return [(place, digest) for place, _, digest in (one.partition("@sha256:") for one in found)]


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _id(name: str) -> str:
    done = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Id}}", name], capture_output=True, text=True, check=False
    )
    if done.returncode:
        refuse(f"the base image {name} is not there; PYTHON_IMAGE in .env names it")
    return done.stdout.strip().removeprefix("sha256:")


def _digest(path: Path) -> dict[str, str]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _commit(image: Image) -> str:
    """The commit of this checkout, once each file of the image that comes from it is found to be that of the commit."""
    commit = _git("rev-parse", "HEAD")
    if changed := _git("status", "--porcelain", "--", *FROM).splitlines():
        refuse(f"{changed[0][2:].strip()} is not committed, and a statement names the commit that an image was built from")
    done = subprocess.run(["git", "archive", "HEAD", "--", *PLACES.values()], cwd=ROOT, capture_output=True, check=False)
    if not commit or done.returncode:
        refuse("an image is signed with the commit that it was built from, and this folder is no git checkout with its files")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        held = {one.name: hashlib.sha256(_read(archive, one)).hexdigest() for one in archive if one.isfile()}
    for place, source in PLACES.items():
        if place in image.files and (other := _code(image, place, source).items() - held.items()):
            name, _ = min(other)
            refuse(f"{image.name}: its {name} is not that of commit {commit[:12]}; commit, then build it again ('make images')")
    return commit


def _below(source: str, held: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in held.items() if name == source or name.startswith(f"{source}/")}


def _code(image: Image, place: str, source: str) -> dict[str, str]:
    """The files of a place in an image, by their names in the checkout, with their hashes. What Python compiled is left out."""
    found = {path: file.sha256 for path, file in image.files.items() if file.kind == "file" and "/__pycache__/" not in path}
    return {source + path.removeprefix(place): digest for path, digest in _below(place, found).items()}


def _read(archive: tarfile.TarFile, one: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(one)
    return file.read() if file else b""


def signed(kind: str, payload: bytes) -> bytes:
    """What DSSE signs, its "pre-authentication encoding": the payload with its type and both lengths in bytes."""
    return b" ".join((b"DSSEv1", str(len(kind.encode())).encode(), kind.encode(), str(len(payload)).encode(), payload))


def key_id(key: Ed25519PublicKey) -> str:
    """The SHA-256 of a public key, by which an envelope names it."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def sign(statement: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """The envelope of a statement, as JSON."""
    payload = json.dumps(statement, sort_keys=True).encode()
    signature = {"keyid": key_id(key.public_key()), "sig": base64.b64encode(key.sign(signed(PAYLOAD, payload))).decode()}
    return json.dumps({"payloadType": PAYLOAD, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}) + "\n"


def opened(envelope: str, key: Ed25519PublicKey, name: str) -> dict[str, Any]:
    """The statement in an envelope. Raises WrongError if the key has not signed it. `name`: of its file."""
    try:
        about = json.loads(envelope)
        payload, given = base64.b64decode(about["payload"], validate=True), about["payloadType"]
        signatures = [base64.b64decode(one["sig"], validate=True) for one in about["signatures"]]
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise WrongError(f"{name} is no signed statement (a DSSE envelope)") from None
    for signature in signatures:
        try:
            key.verify(signature, signed(given, payload))
        except InvalidSignature:
            continue
        statement: dict[str, Any] = json.loads(payload)
        if given != PAYLOAD or statement.get("predicateType") != PREDICATE:
            raise WrongError(f"{name} is signed, and is no provenance of an image")
        return statement
    raise WrongError(
        f"{name} is not signed with this key (sha256 {key_id(key)[:16]}…): another key, or the statement was changed"
    )


def check(statement: dict[str, Any], image: Image, papers: list[Path]) -> None:
    """Compare what was signed with an image and with the files beside it. Raises WrongError at the first difference."""
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    for paper in papers:
        if not paper.exists() or subjects.get(paper.name) != _digest(paper)["sha256"]:
            raise WrongError(f"{paper} is {'not the one' if paper.exists() else 'missing: one'} that was signed")
    if image.digest not in subjects.values():
        signed = statement["subject"][0]
        raise WrongError(
            f"the image {image.name} is not the one that was signed: it is sha256:{image.digest}, "
            f"signed is {signed['name']}, sha256:{signed['digest']['sha256']}"
        )
