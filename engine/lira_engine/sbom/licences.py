"""The licence that a distribution declares, in CycloneDX's words."""

from __future__ import annotations

from importlib.metadata import Distribution

# Spellings that leave one SPDX identifier only. "BSD" and "Apache Software License" do not.
_SPDX = {
    "0bsd": "0BSD",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "isc license": "ISC",
    "isc": "ISC",
    "mit license": "MIT",
    "mit": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl-2.0": "MPL-2.0",
    "psf-2.0": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
    "unlicense": "Unlicense",
}
_NO_LICENCE = "License :: OSI Approved"
_LONGEST_NAME = 80


def licences_of(distribution: Distribution) -> list[dict[str, object]]:
    """Return the value of a component's `licenses`: an SPDX expression where the metadata has one, an SPDX
    identifier where its words leave one only, else its words; empty where it has none.

    Source: PEP 639 (License-Expression), the core metadata's License and Classifier.
    """
    fields = distribution.metadata
    expression = "".join(fields.get_all("License-Expression", [])).strip()
    if expression:
        return [{"expression": expression, "acknowledgement": "declared"}]
    named = "".join(fields.get_all("License", [])).strip()
    # Some put a whole licence text there.
    if "\n" in named or len(named) > _LONGEST_NAME or named.upper() == "UNKNOWN":
        named = ""
    if named:
        return [_licence(named)]
    classified = {text for text in fields.get_all("Classifier", []) if text.startswith("License :: ")}
    return [_licence(text.rpartition(" :: ")[2]) for text in sorted(classified - {_NO_LICENCE})]


def _licence(name: str) -> dict[str, object]:
    spdx = _SPDX.get(name.lower())
    return {"license": {"name": name} if spdx is None else {"id": spdx}}
