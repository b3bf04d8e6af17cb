"""The certificates of stacks with SECURE=1: a development authority of this checkout, and what it signs, or files of your own.

A folder for servers and one for everybody else, which containers mount: each has the authorities to trust (`ca.pem`) and a
certificate with its key in one file, so that both are replaced in one step. A process reads them each time that it connects.
"""

import os
import ssl
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from celery_kit.base.choices import secure
from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate.stacks.docker import Facts, ask, last_line

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FOLDER = ROOT / ".kit/tls"
#: What a server's certificate is for: its names in the stack, and those of this machine, where its ports are published.
NAMES = (*{host: 1 for row in BROKERS.values() for host in row.hosts}, "results", "localhost", "127.0.0.1", "::1")
#: The names of a stack with one broker.
USUAL = ("broker", "results")
#: Days that the authority's certificate is valid, and the others; and days before its end when `make up` makes a new one.
AUTHORITY, OTHERS, EARLY = 3_650, 397, 30
#: By folder, the file with a certificate and its key. In each folder `ca.pem` has the authorities.
FILES = {"server": "server.pem", "client": "client.pem"}
#: Files of the user's own, by variable: the authorities' certificates, a server's certificate, its key; and for SECURE=mutual a
#: file with a client's certificate and key.
OWN = ("TLS_CA", "TLS_CERT", "TLS_KEY", "TLS_CLIENT")


@dataclass(frozen=True)
class Made:
    """What the folder has now. `until`: the end of the certificate that ends first, UTC."""

    folder: Path
    until: datetime
    own: bool


def ensure(environ: Mapping[str, str] = os.environ, servers: Iterable[str] = USUAL) -> Made:
    """Make what is missing, or ends soon; take the user's own files if they are named. Refuses files that cannot serve.

    `servers`: the names of those that will show the certificate.
    """
    given = {name: environ.get(name) or "" for name in OWN}
    if any(given.values()):
        return _own(given, servers)
    soon = datetime.now(UTC) + timedelta(days=EARLY)
    if (FOLDER / "ca.key").exists() and all(_end(file) > soon for file in _files()) and {*servers} <= _names(_files()[0]):
        return _made(own=False)
    return renew()


def renew(authority: bool = False, environ: Mapping[str, str] = os.environ) -> Made:
    """Make new certificates, with new keys, or take the user's own again. With `authority`, also make a new authority; the
    former one is trusted until the next call, so that nothing that runs is refused.
    """
    if any(environ.get(name) for name in OWN):
        return ensure(environ)
    try:
        _folders()
        key, former = FOLDER / "ca.key", FOLDER / "ca.pem"
        if authority or not (key.exists() and former.exists() and _end(former) > datetime.now(UTC)):
            trusted = former.read_bytes() if former.exists() and _end(former) > datetime.now(UTC) else b""
            _authority(key, former)
            _trust(former.read_bytes() + trusted)
        else:
            _trust(former.read_bytes())
        for folder, file in FILES.items():
            _signed(folder, FOLDER / folder / file)
    except OSError as error:
        refuse(f"the certificates in {FOLDER} cannot be made: {error.strerror}")
    return _made(own=False)


def variables(environ: Mapping[str, str] = os.environ, servers: Iterable[str] = USUAL) -> dict[str, str]:
    """What Compose needs for a stack with SECURE set; makes the certificates that are missing. Empty without it.

    `servers`: as of :func:`ensure`.
    """
    if not (kind := secure(environ)):
        return {}
    say(made := ensure(environ, servers))
    if kind == "mutual" and made.own and not environ.get("TLS_CLIENT"):
        refuse("SECURE=mutual with certificates of your own needs TLS_CLIENT, a file with a certificate and its key")
    return {"CERTIFICATES": str(FOLDER)}


def reload(containers: Iterable[Facts]) -> list[str]:
    """Have running servers with certificates read them again, and return their names. Refuses if one does not."""
    names = []
    for one in containers:
        if any(mount["Destination"] == "/tls" and Path(mount["Source"]).name == "server" for mount in one["Mounts"]):
            done = ask("docker", "exec", one["Id"], "sh", "/usr/local/bin/start.sh", "reload")
            name = one["Name"].lstrip("/")
            if done.returncode:
                refuse(f"{name} has not read its new certificate: {last_line(done.stderr or done.stdout)}")
            names.append(name)
    return names


def _files() -> list[Path]:
    return [FOLDER / folder / file for folder, file in FILES.items()]


def _made(own: bool) -> Made:
    return Made(FOLDER, min(map(_end, _files()[: 1 if own else None])), own)


def _folders() -> None:
    """Other users of this machine cannot enter the outer folder. The users of containers can enter the inner ones."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    FOLDER.chmod(0o700)
    for name in FILES:
        (FOLDER / name).mkdir(exist_ok=True)
        (FOLDER / name).chmod(0o755)


def _write(file: Path, data: bytes, mode: int = 0o644) -> None:
    new = file.with_name(f"{file.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(data)
    new.replace(file)


def _trust(authorities: bytes) -> None:
    for name in FILES:
        _write(FOLDER / name / "ca.pem", authorities)


def _end(file: Path) -> datetime:
    """When the first certificate of a file ends; the past if there is none."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return datetime.min.replace(tzinfo=UTC)


def _names(file: Path) -> set[str]:
    """The host names that a certificate is for."""
    from cryptography import x509

    made = x509.load_pem_x509_certificate(file.read_bytes())
    return {*made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)}


def _certificate(name: str, days: int) -> tuple[bytes, "Certificate"]:
    """A key, in PEM, and a certificate for it: of the development authority, or with the name `ca`, that authority's own."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    is_authority = name == "ca"
    subject = issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"celery-kit {name}")])
    signer, signers = key, key.public_key()
    if not is_authority:
        loaded = serialization.load_pem_private_key((FOLDER / "ca.key").read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)  # which only this module writes
        signer, signers = loaded, loaded.public_key()
        issuer = x509.load_pem_x509_certificate((FOLDER / "ca.pem").read_bytes()).subject
    uses = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=is_authority, crl_sign=is_authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # for containers' clocks
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(uses, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signers), critical=False)
    )
    if not is_authority:
        usage = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}[name]
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if name == "server":
        names = [x509.IPAddress(ip_address(one)) if ":" in one or one[0].isdigit() else x509.DNSName(one) for one in NAMES]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, builder.sign(signer, hashes.SHA256())


def _authority(key: Path, file: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    private, made = _certificate("ca", AUTHORITY)
    _write(key, private, 0o600)
    _write(file, made.public_bytes(Encoding.PEM))


def _signed(name: str, file: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    private, made = _certificate(name, OTHERS)
    _write(file, made.public_bytes(Encoding.PEM) + private)


def _own(given: Mapping[str, str], servers: Iterable[str]) -> Made:
    """Take the user's own files, once it is clear that clients will accept them. Refuses others."""
    if missing := [name for name in OWN[:3] if not given[name]]:
        refuse(f"{' and '.join(missing)} missing: certificates of your own need all of {', '.join(OWN[:3])}")
    found = {}
    for name, path in given.items():
        try:
            found[name] = Path(path).read_bytes() if path else b""
        except OSError as error:
            refuse(f"{name}={path} cannot be read: {error.strerror}")
    for name in servers:
        try:
            _shake_hands(given["TLS_CA"], given["TLS_CERT"], given["TLS_KEY"], name)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            refuse(f"TLS_CERT={given['TLS_CERT']} cannot serve as a certificate for {name}: {error}")
    try:
        _folders()
        _trust(found["TLS_CA"])
        _write(FOLDER / "server" / FILES["server"], found["TLS_CERT"].rstrip() + b"\n" + found["TLS_KEY"])
        if found["TLS_CLIENT"]:
            _write(FOLDER / "client" / FILES["client"], found["TLS_CLIENT"])
    except OSError as error:
        refuse(f"the certificates in {FOLDER} cannot be written: {error.strerror}")
    return _made(own=True)


def _shake_hands(authority: str, certificate: str, key: str, name: str) -> None:
    """Connect to a server of that name in memory, as strictly as Python does from 3.13 on. Raises what its client would."""
    client, server = ssl.create_default_context(cafile=authority), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_cert_chain(certificate, key)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there, server_hostname=name), server.wrap_bio(there, back, server_side=True)
    for end in (*ends, *ends):  # a handshake of TLS 1.3 has three parts
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()


def say(made: Made) -> None:
    """Print where the certificates are, and until when they are valid."""
    whose = "your own" if made.own else "of a development authority"
    print(f"certificates {whose} in {made.folder}, valid until {made.until:%Y-%m-%d}", file=sys.stderr)
