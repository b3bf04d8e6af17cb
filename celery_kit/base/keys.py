"""The keys that messages are signed with, and the certificates that are trusted: files, which are read again when they change.

So keys can be replaced while processes run: first the new certificate is trusted everywhere, then the key is replaced. Keys are
RSA, as for Celery's own serializer, or Ed25519. Source: celery/security/ 5.7.0, whose padding and errors these are.
"""

import glob
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from celery.exceptions import SecurityError
from celery.utils.log import get_logger
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

logger = get_logger(__name__)
#: Seconds between two looks at the files, and after which a look for an unknown certificate may follow another.
EVERY, SOONER = 1.0, 0.1


class Pair(NamedTuple):
    """A private key, and the name of its certificate."""

    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    name: str


class Keys:
    """The key that a process signs with, and the certificates that it trusts, by the paths of their files.

    Raises SecurityError or OSError for files that cannot be used. Later ones that cannot be are logged, and not used.
    """

    def __init__(
        self, key: str, certificate: str, store: str, password: str | bytes | None = None, digest: str = "sha256"
    ) -> None:
        self._files, self._store = (key, certificate), store
        self._password = password.encode() if isinstance(password, str) else password
        self._digest: hashes.HashAlgorithm = getattr(hashes, digest.upper())()
        self._looked_at, self._said = time.monotonic(), ""
        self._seen = self._state()
        self._pair, self._trusted = self._read_pair(), self._read_store()

    @property
    def pair(self) -> Pair:
        """The current key, after a look at the files."""
        self._refresh(EVERY)
        return self._pair

    def sign(self, pair: Pair, data: bytes) -> bytes:
        """The signature of `data` by a key."""
        key = pair.key
        return key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(data, self._padding(), self._digest)

    def verify(self, signer: str, data: bytes, signature: bytes) -> None:
        """Raises SecurityError unless a trusted certificate of this name, which has not expired, has signed `data`."""
        self._refresh(EVERY if signer in self._trusted else SOONER)
        certificate = self._trusted.get(signer)
        if certificate is None:
            raise SecurityError(f"Unknown certificate: {signer[:100]!r}")
        if _has_expired(certificate):
            raise SecurityError(f"Expired certificate: {signer!r}")
        key = certificate.public_key()
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, data)
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, data, self._padding(), self._digest)
        except InvalidSignature:
            raise SecurityError("Bad signature") from None

    def _padding(self) -> padding.PSS:
        return padding.PSS(mgf=padding.MGF1(self._digest), salt_length=padding.PSS.MAX_LENGTH)

    def _paths(self) -> list[str]:
        store = str(Path(self._store, "*")) if Path(self._store).is_dir() else self._store
        return sorted(glob.glob(store))  # noqa: PTH207  # as Celery reads it

    def _state(self) -> object:
        found = [(path, Path(path).stat()) for path in (*self._files, *self._paths())]
        return [(path, about.st_mtime_ns, about.st_size, about.st_ino) for path, about in found]

    def _refresh(self, every: float) -> None:
        """Look at the files, unless that was less than so many seconds ago, and read them if they have changed."""
        if time.monotonic() < self._looked_at + every:
            return
        self._looked_at = time.monotonic()
        try:
            if (state := self._state()) != self._seen:
                self._trusted = self._read_store(skip=True)
                self._pair = self._read_pair()
                self._seen, self._said = state, ""
                logger.warning("keys of signed messages were read again: this process signs as %r", self._pair.name)
        except Exception as error:  # the files are being replaced, or are wrong: the earlier ones hold
            if str(error) != self._said:
                self._said = str(error)
                logger.error("keys of signed messages are not read again: %s", error)

    def _read_pair(self) -> Pair:
        pem, made = (Path(path).read_bytes() for path in self._files)
        try:
            key = serialization.load_pem_private_key(pem, self._password)
        except (ValueError, TypeError) as error:
            raise SecurityError(f"Invalid private key: {error!r}") from error
        certificate = _certificate(made)
        if not isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
            raise SecurityError("Invalid private key: it is neither RSA nor Ed25519")
        if key.public_key() != certificate.public_key():
            raise SecurityError("the certificate is not of the private key")
        return Pair(key, name_of(certificate))

    def _read_store(self, skip: bool = False) -> dict[str, x509.Certificate]:
        """The trusted certificates by name. `skip`: leave out those that have expired, with a line, instead of raising."""
        found = {}
        for path in self._paths():
            certificate = _certificate(Path(path).read_bytes())
            name = name_of(certificate)
            if _has_expired(certificate):
                if not skip:
                    raise SecurityError(f"Expired certificate: {name!r}")
                logger.warning("Expired certificate: %r", name)
                continue
            if name in found:
                raise SecurityError(f"Duplicate certificate: {name!r}")
            found[name] = certificate
        return found


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        made = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SecurityError(f"Invalid certificate: {error!r}") from error
    if not isinstance(made.public_key(), rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise SecurityError("Invalid certificate: its key is neither RSA nor Ed25519")
    return made


def _has_expired(certificate: x509.Certificate) -> bool:
    return datetime.now(UTC) >= certificate.not_valid_after_utc


def name_of(certificate: x509.Certificate) -> str:
    """The name of a certificate in signatures: its issuer and serial number, as Celery writes them."""
    return f"{' '.join(str(one.value) for one in certificate.issuer)} {certificate.serial_number}"
