"""Whose engines they are: built here, signed by a trusted key, checked here, or a stranger's."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lira_engine.engines.precision import precision_named
from lira_engine.engines.record import Build
from lira_engine.engines.target import Target
from lira_engine.errors import LiraError, quoted
from lira_engine.system.cache import data_folder
from lira_engine.trust.keys import is_trusted
from lira_engine.trust.known_builds import keep_known, now
from lira_engine.trust.signature import AGAIN, Untrusted, checked_signature
from lira_engine.trust.signed_files import SIGNATURE_NAME, differences

BUILT_HERE = "built here"


@dataclass(frozen=True)
class Origin:
    """Where engines come from.

    Attributes:
        known: text such as "built here"; "" for a stranger's. unproven: what is wrong with their signature,
            if they have one. harmless: the bundle's check vectors can tell whether they are right: they are
            data for ONNX Runtime, not code, and of a precision with a tolerance. vouched: this user built
            them, or trusts who signed them.
    """

    known: str
    unproven: str = ""
    harmless: bool = True
    vouched: bool = False


def origin(build: Build, target: Target, folder: Path) -> Origin:
    """Return where the engines of a record come from. `folder`: where they are.

    Remembers a signature that was found right. Raises LiraError if they have one by a trusted key and are not
    what it signed.
    """
    known = build.known
    if known.built:
        return Origin(BUILT_HERE, vouched=True)
    if is_trusted(known.signed):
        return Origin(f"signed by {known.signed[:12]}", vouched=True)
    harmless = not target.engines_are_code and not any(
        precision_named(one).judged for one in build.precisions.values()
    )
    if harmless and build.verified is not None:
        return Origin(f"verified here at {build.verified.when}")
    if harmless and known.checked:
        return Origin(f"checked here at {known.checked}")
    unproven = ""
    if (folder / SIGNATURE_NAME).exists():
        try:
            signature = checked_signature(folder)
        except Untrusted as error:
            unproven = str(error)
        else:
            _check_signed(folder, build, signature.files)
            with suppress(LiraError):  # a signature can be checked again
                keep_known(build.digest, signed=signature.key.fingerprint)
            return Origin(f"signed by {signature.key.fingerprint[:12]}", vouched=True)
    return Origin("", unproven, harmless)


def require_harmless(found: Origin, build: Build, target: Target, bundle: Path) -> None:
    """Raises LiraError for a stranger's engines that are code, or that no check vectors can judge."""
    if found.known or found.harmless:
        return
    why = "they are code" if target.engines_are_code else "no check vectors tell whether they are right"
    unproven = f" ({found.unproven})" if found.unproven else ""
    folder = bundle / "engines" / f"{build.target}-{build.precision}"  # the bundle itself may be unsigned
    raise LiraError(
        f"the {build.target}-{build.precision} engines were not built here (nothing in {data_folder()} says "
        f"so){unproven}, and {why}: run `{target.build_command(bundle, build.precision, build.options)}`, or "
        f"trust who signed them: `lira-edge verify {quoted(folder)} --signature --key PUBLIC_KEY --trust`"
    )


def remember_built(build: Build) -> None:
    """Remember that this user built the engines. Raises LiraError if the data folder cannot be written."""
    keep_known(build.digest, built=now())


def remember_checked(build: Build) -> str:
    """Remember that engines passed the check vectors. Return what this user must know about them."""
    engines = f"engines {build.target}-{build.precision} were not built here"
    try:
        keep_known(build.digest, vectors=build.known.vectors, checked=now())
    except LiraError as error:
        return f"{engines}: they were checked on the bundle's check vectors, and will be each time ({error})"
    return f"{engines}: they were checked once on the bundle's check vectors, and are right"


def _check_signed(folder: Path, build: Build, signed: Mapping[str, str]) -> None:
    """Raises LiraError if a record, or a file of it, is not what was signed. The files' hashes are those of
    the record, which `usable_build` compares with the files."""
    found = differences(signed, build.signed_files())
    if found.text():
        raise LiraError(f"{folder} is not as it was signed ({found.text()}): {AGAIN}")
