"""All harnesses, by name."""

from __future__ import annotations

from fuzz import annotation_kinds, bundle_kinds, checkpoint_kinds, request_kinds
from fuzz.kind import Kind

KINDS: dict[str, Kind] = {
    kind.name: kind
    for module in (bundle_kinds, checkpoint_kinds, annotation_kinds, request_kinds)
    for kind in module.KINDS
}
