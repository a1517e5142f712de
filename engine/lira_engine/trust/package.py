"""Import OpenSSF Model Signing. Raises LiraError, with the command that installs it, if it is missing."""

from __future__ import annotations

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.extras import install_line

try:
    with memory_errors_told():
        from cryptography import exceptions, x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from model_signing import hashing, signing, verifying
        from OpenSSL import crypto
except ImportError as error:
    raise LiraError(f"signatures need {error.name}, which is missing: {install_line('sign')}") from error

__all__ = ["SIGNATURE_ERRORS", "ec", "hashing", "serialization", "signing", "verifying", "x509"]

SIGNATURE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    exceptions.InvalidSignature,
    exceptions.UnsupportedAlgorithm,
    crypto.Error,
    crypto.X509StoreContextError,
)
"""What its calls raise for a wrong or damaged signature, key or certificate: it checks few of the types of
what it reads."""
