"""`lira-edge doctor --sbom`: the installed environment as a CycloneDX 1.6 document.

It is written without a CycloneDX library: on a device one would add five packages to those that the bill is
of. The tests hold it to the official schema.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sysconfig
import uuid
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.utils import canonicalize_name

from lira_engine.errors import LiraError
from lira_engine.sbom.licences import licences_of
from lira_engine.sbom.native import cuda_parts, libraries_of, own_bills
from lira_engine.sbom.reached import BASE, distributions, reach, requirements
from lira_engine.system.extras import DISTRIBUTION, extras, onnxruntimes

_CODE = Path(__file__).parents[3]
"""The checkout that this code runs from, or the folder that holds site-packages."""


def document() -> str:
    """Return the bill of materials of this Python's environment: ASCII, one JSON document.

    Two calls differ in `metadata.timestamp` and in `serialNumber`, which follows from all the rest; with
    SOURCE_DATE_EPOCH in the environment in nothing. No path, address or user of this machine is in it.
    Raises LiraError if SOURCE_DATE_EPOCH is no number of seconds.
    """
    here = distributions()
    asked = reach(here, DISTRIBUTION, extras())
    base = reach(here, DISTRIBUTION, ())
    by_extra = {extra: set(reach(here, DISTRIBUTION, [extra])) for extra in extras()}
    components, wheels = [], {}
    for name, one in here.items():
        wheels[name] = libraries_of(one)
        if name == DISTRIBUTION:
            continue
        scope = "required" if name in base else "optional" if name in asked else "excluded"
        reasons = [extra for extra in by_extra if name in by_extra[extra]] if scope == "optional" else []
        components.append(_component(name, one, scope, reasons, wheels[name]))
    cuda = cuda_parts(wheels)
    depends = {
        _ref(name, one): {
            _ref(found, here[found]) for found, _ in requirements(here, name, asked.get(name, {BASE}))
        }
        for name, one in here.items()
    }
    for runtime in map(canonicalize_name, onnxruntimes()):
        depends[_ref(runtime, here[runtime])] |= {
            part["bom-ref"] for part in cuda if part["type"] == "library"
        }
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": _about(here[DISTRIBUTION]),
        "components": [_python(), *components, *cuda],
        "dependencies": [{"ref": ref, "dependsOn": sorted(depends[ref])} for ref in sorted(depends)],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))
    return json.dumps({**content, "serialNumber": serial.urn}, indent=1) + "\n"


def _about(own: Distribution) -> dict[str, Any]:
    this: dict[str, Any] = {
        "type": "application",
        "bom-ref": _ref(DISTRIBUTION, own),
        "name": DISTRIBUTION,
        "version": own.version,
        "licenses": licences_of(own),
    }
    commit = _commit(own)
    if commit is not None:
        this["properties"] = _properties("lira-edge:commit", [commit])
    return {
        "timestamp": _time().strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tools": {
            "components": [{"type": "application", "name": f"{DISTRIBUTION} doctor", "version": own.version}]
        },
        "component": this,
        "properties": _properties("lira-edge:platform", [sysconfig.get_platform()]),
    }


def _component(
    name: str, one: Distribution, scope: str, reasons: list[str], files: list[dict[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": _ref(name, one),
        "name": name,
        "version": one.version,
        "purl": _ref(name, one),
        "scope": scope,
        "licenses": licences_of(one),
        "properties": _properties("lira-edge:extra", reasons),
        "externalReferences": own_bills(one),
        "components": files,
    }
    return {key: value for key, value in found.items() if value != []}


def _python() -> dict[str, Any]:
    found = {"name": platform.python_implementation(), "version": platform.python_version()}
    return {"type": "platform", "bom-ref": "python", **found}


def _ref(name: str, one: Distribution) -> str:
    """Return a distribution's package URL. lira-edge itself is on no index: its name, then."""
    return name if name == DISTRIBUTION else f"pkg:pypi/{name}@{quote(one.version, safe='')}"


def _properties(name: str, values: Iterable[str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for value in values]


def _time() -> datetime:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return datetime.now(timezone.utc)
    try:
        return datetime.fromtimestamp(int(text), timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise LiraError(
            f"SOURCE_DATE_EPOCH is {text!r}, expected seconds since 1970 as a whole number: unset it"
        ) from None


def _commit(own: Distribution) -> str | None:
    """Return the commit that lira-edge was installed from, or of the checkout that it runs from, with -dirty
    behind it if files were changed; None if neither is known. Source: PEP 610."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(own.read_text("direct_url.json") or "")["vcs_info"]["commit_id"])
    if not (_CODE / ".git").exists():
        return None
    git = ["git", "-C", str(_CODE), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or not ours to read
        return None
