"""Masks as an SVG drawing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

import numpy as np

from lira_runtime import draw
from lira_serve.mask_formats.polygons import Polygon, as_mask, mask_to_polygons

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_COLOUR = re.compile("#[0-9a-fA-F]{6}")


def mask_to_svg(
    masks: np.ndarray | Sequence[np.ndarray],
    labels: Sequence[str] = (),
    colours: Sequence[str] = (),
    *,
    tolerance: float = 1.0,
) -> str:
    """A mask [H, W] bool, or several of one size -> an SVG drawing of H x W with one path for each.

    labels: the paths' titles. colours: "#rrggbb" for each; by default the colours of `lira_runtime.draw`.
    tolerance: as in `mask_to_polygons`. Raises ValueError if sizes or numbers of masks, labels and colours
    differ, or a colour is none.
    """
    if isinstance(masks, np.ndarray) and masks.ndim == 2:
        masks = [masks]
    all_masks = [as_mask(mask) for mask in masks]
    if not all_masks:
        raise ValueError("no mask, expected at least one")
    height, width = all_masks[0].shape
    if any(mask.shape != (height, width) for mask in all_masks):
        raise ValueError(f"masks have shapes {[mask.shape for mask in all_masks]}, expected one size")
    for name, given in (("labels", labels), ("colours", colours)):
        if given and len(given) != len(all_masks):
            raise ValueError(f"{len(given)} {name} for {len(all_masks)} masks, expected one for each")
    colours = colours or ["#{:02x}{:02x}{:02x}".format(*draw.color(index)) for index in range(len(all_masks))]
    for colour in colours:
        if not _COLOUR.fullmatch(colour):
            raise ValueError(f"colour {colour!r}, expected #rrggbb")
    root = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": str(width),
            "height": str(height),
            "viewBox": f"0 0 {width} {height}",
        },
    )
    for index, (mask, colour) in enumerate(zip(all_masks, colours, strict=True)):
        path = ElementTree.SubElement(
            root,
            "path",
            {
                "d": _path(mask_to_polygons(mask, tolerance)),
                "fill": colour,
                "fill-opacity": "0.5",
                "fill-rule": "evenodd",
            },
        )
        if labels:
            ElementTree.SubElement(path, "title").text = _NOT_XML.sub("\ufffd", labels[index])
    return ElementTree.tostring(root, encoding="unicode")


def _path(polygons: Iterable[Polygon]) -> str:
    rings = (ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes))
    return "".join("M" + " ".join(f"{x},{y}" for x, y in ring.tolist()) + "Z" for ring in rings)
