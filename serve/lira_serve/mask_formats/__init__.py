"""Masks in the formats of other tools: one function for each."""

from lira_runtime.rle import decode as rle_to_mask
from lira_runtime.rle import encode as mask_to_rle
from lira_serve.mask_formats.coco import mask_to_coco
from lira_serve.mask_formats.label_studio import mask_to_label_studio, mask_to_label_studio_polygons
from lira_serve.mask_formats.png import mask_to_png, png_data_uri, png_to_mask
from lira_serve.mask_formats.polygons import Polygon, mask_to_polygons, polygons_to_mask
from lira_serve.mask_formats.svg import mask_to_svg

__all__ = [
    "Polygon",
    "mask_to_coco",
    "mask_to_label_studio",
    "mask_to_label_studio_polygons",
    "mask_to_png",
    "mask_to_polygons",
    "mask_to_rle",
    "mask_to_svg",
    "png_data_uri",
    "png_to_mask",
    "polygons_to_mask",
    "rle_to_mask",
]
