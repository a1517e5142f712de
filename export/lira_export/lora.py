"""Read what a checkpoint's configuration says about its LoRA adapters (peft)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lira_engine.errors import LiraError

from .json_files import Section

_MOST_RANK = 1 << 16


@dataclass(frozen=True)
class LoraConfig:
    """The adapters according to the configuration. Their file decides about the rank.

    Attributes:
        rank: None if not stated. alpha: None for twice the rank, as in both published sizes.
        rslora: the scale is alpha over the square root of the rank (rank-stabilised LoRA).
    """

    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False

    # Keys that do not change what is merged, and keys that would if they were set.
    _IGNORED = (
        "lora_dropout", "target_modules", "exclude_modules", "task_type", "peft_type", "peft_version",
        "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "megatron_config",
        "megatron_core", "loftq_config", "runtime_config", "eva_config", "corda_config", "qalora_group_size",
    )  # fmt: skip
    _OFF = (
        "use_dora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern", "layers_to_transform",
        "layers_pattern", "layer_replication", "modules_to_save", "trainable_token_indices",
        "target_parameters", "use_qalora", "ensure_weight_tying", "arrow_config", "alora_invocation_tokens",
    )  # fmt: skip

    @classmethod
    def read(cls, lora: Section) -> LoraConfig:
        """Read the section. Raises LiraError for an unknown key, or one whose effect cannot be merged."""
        found = cls(
            rank=lora.integer("r", None, most=_MOST_RANK),
            alpha=lora.number("lora_alpha", None),
            rslora=lora.flag("use_rslora", False),
        )
        for key in cls._OFF:
            if lora.value(key):
                raise lora.error(key, lora.value(key), "none: it cannot be merged")
        if lora.value("bias") not in (None, "none"):
            raise lora.error("bias", lora.value("bias"), "none: it cannot be merged")
        if lora.value("init_lora_weights") not in (None, True, False, "gaussian", "orthogonal"):
            raise lora.error(
                "init_lora_weights", lora.value("init_lora_weights"), "one that leaves the base as it is"
            )
        read = ("r", "lora_alpha", "use_rslora", "scaling", "bias", "init_lora_weights")
        unknown = sorted(set(lora.keys) - {*read, *cls._IGNORED, *cls._OFF})
        if unknown:
            raise LiraError(
                f"{lora.where}: unknown key {unknown[0]!r}, expected those of a peft LoRA configuration: "
                "remove it if it does not change the weights"
            )
        scaling = lora.number("scaling", None)
        if (
            scaling is not None
            and found.rank
            and not math.isclose(scaling, found.scale(found.rank), rel_tol=1e-6)
        ):
            raise lora.error("scaling", scaling, f"{found.scale(found.rank):g}, which r and lora_alpha give")
        return found

    def scale(self, rank: int) -> float:
        """Return the factor of B @ A."""
        return self.scaled_alpha(rank) / (math.sqrt(rank) if self.rslora else rank)

    def scaled_alpha(self, rank: int) -> float:
        """Return alpha."""
        return 2.0 * rank if self.alpha is None else self.alpha
