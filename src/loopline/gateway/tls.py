"""TLS of the public port: a certificate of the administrator's, or one made for this machine and renewed by itself.

A certificate made here is signed by an authority of this data directory: clients trust ``tls/ca.pem`` once and need
nothing when the certificate is renewed, or made again for other names. Keys have mode 0600 and leave the directory
never.
"""

import datetime
import fcntl
import ipaddress
import os
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from loopline.config import Settings
from loopline.errors import InvalidInput

CA_DAYS = 3650
DAYS = 397  # what browsers accept at most
RENEW_DAYS = 30

Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


class Certificate:
    """The certificate in force; ``context`` stays the same object when it is renewed."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``InvalidInput`` where the files are no certificate and its key."""
        self._settings = settings
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._loaded: tuple[object, ...] = ()
        self.refresh()

    def refresh(self) -> bool:
        """Renew or read again what has to be; whether new connections see another certificate from now on.

        Raises ``InvalidInput``; the certificate in force stays in force then.
        """
        settings = self._settings
        if settings.tls:
            make_local(settings.tls_dir, local_names(settings))
            files = settings.tls_dir / "server.pem", settings.tls_dir / "server.key"
        else:
            files = Path(settings.tls_certificate), Path(settings.tls_key)
        try:
            facts = tuple((found.st_mtime_ns, found.st_ino, found.st_size) for found in map(os.stat, files))
            if facts == self._loaded:
                return False
            self.context.load_cert_chain(*files)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(f"{files[0]} and {files[1]} are no certificate and its key: {error}") from None
        self._loaded = facts
        return True


def local_names(settings: Settings) -> list[str]:
    """The host names and addresses that a certificate made here is for."""
    names = {"localhost", "127.0.0.1", "::1"}
    for host in (settings.host, *settings.allowed_hosts):
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and host.count(":") == 1 else host
        if name not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            names.add(name.strip("[]").lower())
    return sorted(names)


def make_local(folder: Path, names: list[str]) -> None:
    """Leave in ``folder`` an authority and a certificate for ``names`` that is good for another month."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several gateways start at the same time
        authority = _read(folder / "ca.pem", folder / "ca.key")
        if authority is None or _days_left(authority[0]) < DAYS:
            authority = _make_authority()
            _write(folder / "ca.key", _private(authority[1]))
            _write(folder / "ca.pem", _public(authority[0]))
        current = _read(folder / "server.pem", folder / "server.key")
        if current is None or not _still_good(current[0], authority[0], names):
            certificate, key = _make_certificate(authority, names)
            _write(folder / "server.key", _private(key))
            _write(folder / "server.pem", _public(certificate) + _public(authority[0]))
    finally:
        os.close(lock)


def _read(certificate: Path, key: Path) -> Pair | None:
    """A certificate and its key; None where they are missing, broken or not a pair."""
    try:
        first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != first.public_key():
        return None
    return first, private


def _days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400


def _still_good(certificate: x509.Certificate, authority: x509.Certificate, names: list[str]) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return _days_left(certificate) >= RENEW_DAYS and found == _alternatives(names)


def _alternatives(names: list[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            try:
                found.append(x509.DNSName(name))
            except ValueError:
                raise InvalidInput(f"allowed_hosts: {name!r} is no host name that a certificate can hold") from None
    return x509.SubjectAlternativeName(found)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _make_authority() -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number() & 0xFFFFFFFF  # two authorities of one name confuse clients that know both
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"loopline local authority {serial:08x}")])
    builder = _builder(name, name, key.public_key(), CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.add_extension(_usage(True), critical=True).sign(key, hashes.SHA256()), key


def _make_certificate(authority: Pair, names: list[str]) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopline")])
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority[1].public_key())
    certificate = (
        _builder(subject, authority[0].subject, key.public_key(), DAYS)
        .add_extension(_alternatives(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(above, critical=False)
        .sign(authority[1], hashes.SHA256())
    )
    return certificate, key


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
