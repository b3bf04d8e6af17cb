"""Keys and certificates: for signed messages, and for servers."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


_key = cache(lambda _name: _new_key())
_ed25519_key = cache(lambda _name: ed25519.Ed25519PrivateKey.generate())


def _private(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(name: str, valid: float = 3_600, kind: str = "rsa") -> tuple[bytes, bytes]:
    """The key of that name, and a new certificate for it, in PEM. The certificate is valid for some seconds from now.

    `kind`: rsa or ed25519.
    """
    named, now = _name(name), datetime.now(UTC)
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = _key(name) if kind == "rsa" else _ed25519_key(name)
    made = (
        x509.CertificateBuilder(named, named, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(seconds=valid))
        .sign(key, hashes.SHA256() if kind == "rsa" else None)
    )
    return _private(key), made.public_bytes(PEM)


class Authority:
    """A certificate authority, as a company has one. `pem`: its certificate."""

    def __init__(self) -> None:
        self.key, self.name, now = _new_key(), _name("an authority"), datetime.now(UTC)
        self.usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self.made = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=10))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(self.usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = self.made.public_bytes(PEM)

    def signs(self, names: Sequence[str], days: int = 5) -> tuple[bytes, bytes]:
        """A server's key and certificate, in PEM, for these names. It ends in so many days, or ended so many days ago."""
        key, now = _key("a server"), datetime.now(UTC)
        made = (
            x509.CertificateBuilder(self.name, _name("a server"), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=9))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return _private(key), made.public_bytes(PEM)
