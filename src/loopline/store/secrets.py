"""What must not be read from a copy of the database: secrets sealed with AES-256-GCM, and the key that signs artifacts.

Keys stand in files of mode 0600, made at the first start. Sealed bytes: version (1) | nonce (12) | ciphertext and tag;
the secret's name is authenticated with them, so that one secret's bytes cannot be put in another's place.
"""

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from loopline.errors import Corrupt, Forbidden, InvalidInput, NotFound
from loopline.store.blobs import check_digest
from loopline.store.db import Db, Tx
from loopline.store.schema import secrets as table

MAX_NAME_LENGTH = 127
MAX_VALUE_BYTES = 64 << 10

_VERSION = b"\x01"
_NONCE_BYTES = 12
_KEY_BYTES = 32
_SIGNED = b"loopline produced artifact 1\n"  # what else this key may ever sign begins otherwise


class Secrets:
    """Named values that only loopline reads. Values are text; they never stand in an event."""

    def __init__(self, db: Db, key_dir: Path) -> None:
        self._db = db
        self._cipher = AESGCM(load_key(key_dir / "secret.key"))

    def set(self, tx: Tx, name: str, value: str) -> None:
        """Store a secret, in place of one with this name."""
        data = value.encode()
        if len(data) > MAX_VALUE_BYTES:
            raise InvalidInput(f"a secret holds at most {MAX_VALUE_BYTES} bytes")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = _VERSION + nonce + self._cipher.encrypt(nonce, data, _associated(name))
        row = {"name": name, "sealed": sealed, "changed_at": tx.now}
        tx.upsert(table, [row], ("name",), ("sealed", "changed_at"))

    def get(self, tx: Tx, name: str) -> str:
        """The value; raises ``NotFound``, or ``Corrupt`` when the key or the sealed bytes are not the ones it needs."""
        sealed = tx.execute(sa.select(table.c.sealed).where(table.c.name == name)).scalar_one_or_none()
        if sealed is None:
            raise NotFound(f"there is no secret {name!r}")
        nonce, box = bytes(sealed[1 : 1 + _NONCE_BYTES]), bytes(sealed[1 + _NONCE_BYTES :])
        if sealed[:1] != _VERSION or len(box) < 16:
            raise Corrupt(f"the secret {name!r} was sealed by a newer version of loopline, or is damaged")
        try:
            return self._cipher.decrypt(nonce, box, _associated(name)).decode()
        except InvalidTag:
            raise Corrupt(f"the secret {name!r} cannot be opened with this installation's key") from None

    def delete(self, tx: Tx, name: str) -> None:
        """Remove a secret; raises ``NotFound``."""
        if tx.execute(table.delete().where(table.c.name == name)).rowcount != 1:
            raise NotFound(f"there is no secret {name!r}")

    def names(self, tx: Tx) -> list[str]:
        """Every secret's name, sorted."""
        return list(tx.execute(sa.select(table.c.name).order_by(table.c.name)).scalars())


class Signer:
    """Signs the digests of what jobs of this installation produced (Ed25519)."""

    def __init__(self, key_dir: Path) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(load_key(key_dir / "signing.key"))
        self._public = self._key.public_key()

    def sign(self, digest: str) -> str:
        """The signature of a SHA-256 digest (64 hexadecimal digits), in base 64."""
        return base64.b64encode(self._key.sign(_SIGNED + check_digest(digest).encode())).decode()

    def verify(self, digest: str, signature: str) -> bool:
        """Whether this installation signed that digest; anything malformed is simply not a signature."""
        try:
            raw = base64.b64decode(signature, validate=True)
            self._public.verify(raw, _SIGNED + check_digest(digest).encode())
        except (InvalidSignature, InvalidInput, ValueError, binascii.Error):
            return False
        return True


def load_key(path: Path) -> bytes:
    """The 32 bytes of a key file, made when there is none.

    Raises ``Forbidden`` when it belongs to another user or others may read or write it, ``Corrupt`` when it is no key.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _make_key(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise Forbidden(f"{path.name} must be a file of this user with mode 0600, that nobody else can read")
        key = file.read(_KEY_BYTES + 1)
    if len(key) != _KEY_BYTES:
        raise Corrupt(f"{path.name} is not a key of {_KEY_BYTES} bytes")
    return key


def _make_key(path: Path) -> None:
    """Write a new key under a temporary name and link it into place: a start that dies leaves no half-written key,
    and of two that start together the first one's key stands."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink()


def _associated(name: str) -> bytes:
    if not name or len(name) > MAX_NAME_LENGTH:
        raise InvalidInput(f"a secret's name has 1 to {MAX_NAME_LENGTH} characters")
    return b"loopline secret 1\n" + name.encode()
