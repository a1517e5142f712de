"""lira-nano as a size of `lira-edge synthesize` (entry point group `lira_edge.presets`)."""

from __future__ import annotations

from lira_export.synthetic.presets import Preset

from .architecture import config_dict
from .tokenizer import build_tokenizer


def preset() -> Preset:
    """Return the files of the trained checkpoint, to be filled with random weights."""
    own = config_dict() | {"synthetic": True}
    llm = own["llm_config"] | {"vocab_size": build_tokenizer().get_vocab_size()}
    base = {key: own[key] for key in ("vision_config", "downsample_ratio")} | {"llm_config": llm}
    return Preset("LIRA-nano", "internvl2-nano", base, own["lora"]["r"], build_tokenizer, own)
