"""Sign a folder: OpenSSF Model Signing, by a private key or a certificate, without a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lira_engine.bundle.integrity import confined
from lira_engine.bundle.manifest import MANIFEST_NAME
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write, system_error
from lira_engine.trust.signed_files import SIGNATURE_NAME, SignedFiles

PASSPHRASE = "LIRA_EDGE_SIGN_PASSPHRASE"
"""Environment variable with the passphrase of a private key."""
_MAKE = "`openssl ecparam -name prime256v1 -genkey -noout -out KEY` makes one"


@dataclass(frozen=True)
class Signer:
    """A private key that is ready to sign."""

    key: Path
    _config: Any

    @classmethod
    def load(cls, key: Path, certificate: Path | None = None) -> Signer:
        """Read a private key (PEM, elliptic curve), and the certificate of its public key: a PEM file which
        may go on with those that issued it.

        Raises LiraError if one cannot be read, does not fit, or is protected by a passphrase that PASSPHRASE
        does not hold; and if the package is missing.
        """
        from lira_engine.trust import package

        secret = os.environ.get(PASSPHRASE)
        password = secret.encode() if secret else None
        _check_key(key, password)
        if certificate is not None and password is not None:
            raise LiraError(f"{key}: with --certificate the key must have no passphrase: unset {PASSPHRASE}")
        config = package.signing.Config()
        try:
            if certificate is None:
                config.use_elliptic_key_signer(private_key=key, password=password)  # type: ignore[arg-type]
            else:
                config.use_certificate_signer(
                    private_key=key, signing_certificate=certificate, certificate_chain=[certificate]
                )
        except OSError as error:
            raise LiraError(f"{error.filename} cannot be read: {os.strerror(error.errno or 0)}") from None
        except package.SIGNATURE_ERRORS as error:
            raise LiraError(f"{key} and {certificate} cannot sign together: {_line(error)}") from None
        return cls(key, config)

    def sign(self, files: SignedFiles, path: Path) -> None:
        """Write a signature to `path`."""
        from lira_engine.trust import package

        class Known(package.hashing.Config):
            """Hashes nothing: the SHA-256 of all files are known."""

            def hash(  # type: ignore[override]
                self, model_path: object, *, files_to_hash: object = None
            ) -> SignedFiles:
                return files

        self._config.set_hashing_config(Known()).sign(path.parent, path)


def signer_for(key: Path | None, certificate: Path | None) -> Signer | None:
    """Return the signer that a command line asks for, if it does. Raises LiraError as `Signer.load`."""
    if key is None:
        if certificate is not None:
            raise LiraError("--certificate goes with --sign: give its private key, too")
        return None
    return Signer.load(key, certificate)


def sign_folder(signer: Signer, folder: Path, name: str, files: Mapping[str, str]) -> None:
    """Sign a folder that is being written and will have a `name`, by the SHA-256 of its files. Engines inside
    of a bundle have signatures of their own."""
    left_out = ("engines",) if MANIFEST_NAME in files else ()
    signer.sign(SignedFiles(name, files, left_out), folder / SIGNATURE_NAME)


def sign_again(signer: Signer, folder: Path, files: Mapping[str, str]) -> None:
    """Sign engines that are in use, as `sign_folder` does: another signature is replaced at once. Raises
    LiraError if a link leads from its place out of the folder."""
    with atomic_write(confined(folder, SIGNATURE_NAME)) as file:
        signer.sign(SignedFiles(folder.name, files), Path(file.name))


def _check_key(key: Path, password: bytes | None) -> None:
    from lira_engine.trust.package import SIGNATURE_ERRORS, ec, serialization

    try:
        content = key.read_bytes()
    except OSError as error:
        raise LiraError(system_error(error, f"the private key {key} cannot be read")) from None
    try:
        found = serialization.load_pem_private_key(content, password)
    except SIGNATURE_ERRORS as error:
        mend = f"put its passphrase into {PASSPHRASE}" if password is None else f"see {PASSPHRASE}"
        if b"ENCRYPTED" in content or password is not None:
            raise LiraError(f"{key} cannot be opened ({_line(error)}): {mend}") from None
        raise LiraError(f"{key} is no private key in PEM: {_MAKE}") from None
    curves = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
    if not isinstance(found, ec.EllipticCurvePrivateKey) or not isinstance(found.curve, curves):
        raise LiraError(f"{key} is no elliptic curve key of P-256, P-384 or P-521: {_MAKE}")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
