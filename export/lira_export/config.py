"""Sizes and constants of a LIRA checkpoint.

Upstream keeps them in three places: InternVL2's ``config.json`` (tile encoder and language model), a Python
training configuration (pixel encoder, projector, LoRA) and its scripts (preprocessing, prompts, token ids).
A checkpoint folder may hold all of it in one ``config.json`` beside the five files; without one, the values
of upstream's published configuration apply to what InternVL2's file does not say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.manifest import PixelSpec, TileSpec

from .families import family_of
from .tokenizer import LIRA_TOKENS


@dataclass(frozen=True)
class VisionConfig:
    """InternViT and the projection of its tokens (InternVL2 ``config.json``)."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6
    shuffle: int = 2  # 1 / downsample_ratio

    @property
    def tokens_per_tile(self) -> int:
        return (self.image_size // self.patch_size // self.shuffle) ** 2


@dataclass(frozen=True)
class LlmConfig:
    """The language model (InternVL2 ``config.json``, ``llm_config``). ``vocab_size``: rows of the table of
    embeddings, the six LIRA tokens included."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int = 32768
    rope_scaling_factor: float | None = None  # of dynamic NTK; None: no positions beyond the trained ones
    family: str = "internlm2"
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def qkv_bias(self) -> bool:
        return family_of(self.family).qkv_bias


@dataclass(frozen=True)
class PixelConfig:
    """ConvNeXt trunk, deformable pixel decoder and Mask2Former head (upstream configs/finetune/LIRA-*.py)."""

    image_size: int = 1024
    dims: tuple[int, ...] = (192, 384, 768, 1536)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    cell_shuffle: int = 2  # res5 is pixel-shuffled by this; 1 where upstream's ratio is None
    feat_channels: int = 256
    num_classes: int = 133
    num_queries: int = 300
    num_heads: int = 8
    num_levels: int = 3
    num_points: int = 4
    num_groups: int = 32
    encoder_layers: int = 6
    encoder_ffn: int = 1024
    decoder_layers: int = 9
    decoder_heads: int = 8
    decoder_ffn: int = 2048
    clip_embed_dim: int = 768
    logit_scale_ln: float = 4.6052
    prompt_num_feats: int = 128

    @property
    def grid(self) -> int:
        """Cells per side of the grid on which object queries compete."""
        return self.image_size // 32 // self.cell_shuffle

    @property
    def shuffled_channels(self) -> int:
        return self.dims[-1] * self.cell_shuffle**2


@dataclass(frozen=True)
class ProjectorConfig:
    """SEFE projector and text-to-vision projection (upstream modules/projector)."""

    depth: int = 2
    cross_heads: int = 32
    text2vision_depth: int = 2


# Upstream's scripts: InternVL2's tiling with ImageNet statistics, a square with four-digit CLIP statistics.
TILES = TileSpec(448, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), min_num=1, max_num=6, use_thumbnail=True)
PIXELS = PixelSpec(1024, (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757), pad_color=(122, 116, 104))


@dataclass(frozen=True)
class LiraConfig:
    """Everything that the reference model, the exporter and the bundle need to know of a checkpoint."""

    name: str
    vision: VisionConfig
    llm: LlmConfig
    pixel: PixelConfig
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    lora_alpha: float | None = None  # None: twice the rank, as in both published sizes
    tiles: TileSpec = TILES
    pixels: PixelSpec = PIXELS
    special_token_ids: Mapping[str, int] = field(default_factory=dict)
    bos_token_id: int | None = None  # None: the family's
    synthetic: bool = False  # random weights, see lira_export.synthetic
    space_p_token_ids: tuple[int, ...] | None = None  # None: ask the tokenizer
    prompts: Mapping[str, Any] | None = None  # None: the family's chat prompts
    context_length: int | None = None  # None: the exporter's default

    @classmethod
    def from_folder(cls, folder: Path) -> LiraConfig:
        """Read the configuration of a checkpoint folder.

        Raises:
            LiraError: no configuration is found, it is not JSON, or a key is missing.
        """
        own = folder / "config.json"
        if own.is_file():
            return cls.from_dict(_read_json(own), name=folder.name, source=own)
        internvl = internvl_folder(folder)
        return cls.from_internvl(_read_json(internvl / "config.json"), folder.name, internvl / "config.json")

    @classmethod
    def from_internvl(cls, data: Mapping[str, Any], name: str, source: Path) -> LiraConfig:
        """InternVL2's config.json plus upstream's published constants for the rest."""
        try:
            return cls(
                name=name,
                vision=_vision(data["vision_config"], data),
                llm=_llm(data["llm_config"], added=len(LIRA_TOKENS)),
                pixel=PixelConfig(),
                tiles=replace(TILES, size=data["vision_config"]["image_size"]),
                synthetic=data.get("synthetic", False),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise _unusable(source, error) from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str, source: Path) -> LiraConfig:
        """One config.json that says everything, in InternVL2's names where they exist."""
        try:
            head = data["pixel_encoder"]["panoptic_head"]
            pre = data.get("preprocessing", {})
            llm = _llm(data["llm_config"], added=0)
            return cls(
                name=data.get("name", name),
                vision=_vision(data["vision_config"], data),
                llm=llm,
                pixel=_pixel(data["pixel_encoder"], head),
                projector=ProjectorConfig(
                    depth=data["projector"]["depth"],
                    cross_heads=data["projector"]["cross_head_num"],
                    text2vision_depth=data["projector_text2vision"]["depth"],
                ),
                lora_alpha=data["lora"]["lora_alpha"],
                tiles=_dataclass(
                    replace(
                        TILES,
                        size=data["vision_config"]["image_size"],
                        min_num=data.get("min_dynamic_patch", 1),
                        max_num=data.get("max_dynamic_patch", 6),
                        use_thumbnail=data.get("use_thumbnail", True),
                    ),
                    pre.get("tile", {}),
                ),
                pixels=_dataclass(
                    replace(PIXELS, size=data["pixel_encoder"]["image_size"]),
                    {key.removeprefix("image_"): value for key, value in pre.get("pixel", {}).items()},
                ),
                special_token_ids=data.get("special_token_ids", {}),
                bos_token_id=data.get("bos_token_id"),
                synthetic=data.get("synthetic", False),
                space_p_token_ids=tuple(data["space_p_token_ids"]) if "space_p_token_ids" in data else None,
                prompts=data.get("prompts"),
                context_length=data.get("context_length"),
            )
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise _unusable(source, error) from None


def internvl_folder(folder: Path) -> Path:
    """The InternVL2 folder inside a checkpoint folder: the one with a config.json and safetensors.

    Raises:
        LiraError: none or more than one.
    """
    if not folder.is_dir():
        raise LiraError(f"{folder}: no such folder; expected a folder with the five checkpoint files")
    found = [p for p in sorted(folder.iterdir()) if (p / "config.json").is_file()]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise LiraError(
            f"{folder}: found {names} as InternVL2 folder, expected exactly one sub-folder with config.json "
            "and *.safetensors; put the base model there"
        )
    return found[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LiraError(f"{path}: no such file; expected the base model's configuration") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LiraError(f"{path}: not JSON ({error}); download the file again") from None
    if not isinstance(data, dict):
        raise LiraError(f"{path}: found a JSON {type(data).__name__}, expected an object")
    return data


def _unusable(source: Path, error: Exception) -> LiraError:
    problem = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
    return LiraError(f"{source}: {problem}; expected the configuration of a LIRA or InternVL2 model")


def _vision(vision: Mapping[str, Any], top: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        hidden_size=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
        shuffle=round(1 / top.get("downsample_ratio", 0.5)),
    )


def _llm(llm: Mapping[str, Any], added: int) -> LlmConfig:
    scaling = llm.get("rope_scaling") or {}
    if scaling and scaling.get("type") != "dynamic":
        raise ValueError(f"rope_scaling is {scaling}, expected none or type dynamic")
    return LlmConfig(
        vocab_size=llm["vocab_size"] + added,
        hidden_size=llm["hidden_size"],
        intermediate_size=llm["intermediate_size"],
        num_layers=llm["num_hidden_layers"],
        num_heads=llm["num_attention_heads"],
        num_kv_heads=llm["num_key_value_heads"],
        rope_theta=float(llm["rope_theta"]),
        rms_norm_eps=llm["rms_norm_eps"],
        max_position_embeddings=llm["max_position_embeddings"],
        rope_scaling_factor=float(scaling["factor"]) if scaling else None,
        family=llm.get("model_type", "internlm2"),
        tie_word_embeddings=llm.get("tie_word_embeddings", False),
    )


def _pixel(encoder: Mapping[str, Any], head: Mapping[str, Any]) -> PixelConfig:
    decoder, transformer = head["pixel_decoder"], head["transformer_decoder"]
    return PixelConfig(
        image_size=encoder["image_size"],
        dims=tuple(encoder["backbone"]["dims"]),
        depths=tuple(encoder["backbone"]["depths"]),
        cell_shuffle=encoder["pixel_shuffle_down_ratio"] or 1,
        feat_channels=head["feat_channels"],
        num_classes=head["num_things_classes"] + head["num_stuff_classes"],
        num_queries=head["num_queries"],
        num_heads=decoder["num_heads"],
        num_levels=decoder["num_levels"],
        num_points=decoder["num_points"],
        num_groups=decoder["num_groups"],
        encoder_layers=decoder["num_layers"],
        encoder_ffn=decoder["feedforward_channels"],
        decoder_layers=transformer["num_layers"],
        decoder_heads=transformer["num_heads"],
        decoder_ffn=transformer["feedforward_channels"],
        clip_embed_dim=encoder["backbone"]["clip_embed_dim"],
        logit_scale_ln=head["logit_scale_ln"],
        prompt_num_feats=head.get("visual_prompt_coordinate_num_feats", head["feat_channels"] // 2),
    )


def _dataclass(default: Any, data: Mapping[str, Any]) -> Any:
    known = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items() if hasattr(default, key)}
    return replace(default, **known)
