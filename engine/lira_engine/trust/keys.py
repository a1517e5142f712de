"""Keys and root certificates that this user trusts: PEM files in the user's data folder, named by their
fingerprints. Whoever removes a file trusts its key no longer."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lira_engine.errors import LiraError
from lira_engine.system.atomic import system_error
from lira_engine.system.cache import data_folder, own_folder, read_own, write_own


@dataclass(frozen=True)
class Key:
    """A public key, or a root certificate. `fingerprint`: SHA-256 in hexadecimal; of a key that of its PEM,
    as the standard's signatures name it, of a certificate that of its DER."""

    path: Path
    fingerprint: str
    pem: bytes
    certificate: bool

    @classmethod
    def read(cls, path: Path) -> Key:
        """Raises LiraError if the file is no public key or certificate in PEM, or the package is missing."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LiraError(system_error(error, f"the public key {path} cannot be read")) from None
        return cls._parsed(path, content)

    @classmethod
    def _parsed(cls, path: Path, content: bytes) -> Key:
        from lira_engine.trust.package import SIGNATURE_ERRORS, serialization, x509

        try:
            if b"BEGIN CERTIFICATE" in content:
                der = x509.load_pem_x509_certificate(content).public_bytes(serialization.Encoding.DER)
                return cls(path, sha256(der).hexdigest(), content, True)
            pem = serialization.load_pem_public_key(content).public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        except SIGNATURE_ERRORS:
            raise LiraError(
                f"{path} is no public key or certificate in PEM: `openssl ec -in KEY -pubout -out {path}` "
                "writes that of a private key"
            ) from None
        return cls(path, sha256(pem).hexdigest(), pem, False)


def trusted_path(fingerprint: str) -> Path:
    """Return the path of a trusted key, which need not exist."""
    return data_folder() / "trusted-keys" / f"{fingerprint}.pem"


def is_trusted(fingerprint: str) -> bool:
    """Return whether this user trusts the key now."""
    return bool(fingerprint) and read_own(trusted_path(fingerprint)) is not None


def trust(key: Key) -> Path:
    """Trust a key, and return its file. Raises LiraError if that cannot be written."""
    path = trusted_path(key.fingerprint)
    own_folder(path.parent)
    write_own(path, key.pem)
    return path


def trusted_keys() -> list[Key]:
    """Return all keys that this user trusts. Files that hold another key than their name says, or that
    another user could have written, count for nothing."""
    found = []
    for path in sorted(trusted_path("*").parent.glob("*.pem")):
        content = read_own(path)
        if content is not None:
            try:
                key = Key._parsed(path, content)
            except LiraError:
                continue
            if key.fingerprint == path.stem:
                found.append(key)
    return found
