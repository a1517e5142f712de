"""Sizes and constants of a LIRA checkpoint.

Upstream keeps them in three places: InternVL2's ``config.json`` (tile encoder and language model), a Python
training configuration (pixel encoder, projector, LoRA), and scripts (preprocessing, prompts, token ids). A
checkpoint's folder may hold all of them in a ``config.json`` of its own. Without it, upstream's published
values stand for what InternVL2's file does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lira_engine.bundle.manifest import PixelSpec, TileSpec
from lira_engine.errors import LiraError

from .families import DEFAULT, family_of
from .json_files import Section, read_json
from .lora import LoraConfig

# In upstream's order. With InternVL2's tokenizer they get the ids 92553 to 92558.
LIRA_TOKENS = ("[SEG]", "<p>", "</p>", "<region>", "<mark>", "<image_id>")

# A larger number in a configuration is a mistake, and the model would take minutes to lay out.
_MOST_LAYERS, _MOST_HEADS, _MOST_WIDTH, _MOST_PIXELS, _MOST_TILES = 1000, 1024, 1 << 16, 1 << 12, 64
_MOST_TOKENS, _MOST_POSITIONS = 1 << 24, 1 << 24


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
    """The language model (InternVL2 ``config.json``, ``llm_config``).

    ``vocab_size``: rows of the table of embeddings, with the six LIRA tokens.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int = 32768
    rope_scaling_factor: float | None = None  # of dynamic NTK; None: only the trained positions
    family: str = DEFAULT.name
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def qkv_bias(self) -> bool:
        return family_of(self.family).qkv_bias

    def check_context_length(self, length: int, least: int = 1) -> None:
        """Raise LiraError if a KV cache of ``length`` slots is too short, or longer than the positions that
        the model was trained for. Dynamic NTK scaling has no such limit."""
        longest = self.max_position_embeddings if self.rope_scaling_factor is None else None
        if length < least or (longest is not None and length > longest):
            most = f" to {longest}, the positions that the model was trained for" if longest else " or more"
            raise LiraError(f"context length {length}: expected {least}{most}")


@dataclass(frozen=True)
class PixelConfig:
    """ConvNeXt trunk, deformable pixel decoder and Mask2Former head (upstream configs/finetune/LIRA-*.py)."""

    image_size: int = 1024
    dims: tuple[int, ...] = (192, 384, 768, 1536)
    depths: tuple[int, ...] = (3, 3, 27, 3)
    cell_shuffle: int = 2  # pixel shuffle of res5; 1 if upstream's ratio is None
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
        """Cells per side of the grid for which object queries compete."""
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


# Of upstream's scripts: InternVL2's tiles with ImageNet's statistics, a square with CLIP's in four digits.
TILES = TileSpec(448, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), min_num=1, max_num=6, use_thumbnail=True)
PIXELS = PixelSpec(1024, (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757), pad_color=(122, 116, 104))


@dataclass(frozen=True)
class LiraConfig:
    """All sizes and constants of a checkpoint that the reference model and the exporter use."""

    name: str
    vision: VisionConfig
    llm: LlmConfig
    pixel: PixelConfig
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    tiles: TileSpec = TILES
    pixels: PixelSpec = PIXELS
    special_token_ids: Mapping[str, int] = field(default_factory=dict)
    bos_token_id: int | None = None  # None: the family's
    synthetic: bool = False  # random weights, see lira_export.synthetic
    space_p_token_ids: tuple[int, ...] | None = None  # ids of " <p>"; None: the tokenizer's
    prompts: Mapping[str, Any] | None = None  # None: the family's chat prompts
    context_length: int | None = None  # None: the exporter's default

    @classmethod
    def from_files(cls, own: Path | None, base: Path, name: str) -> LiraConfig:
        """Read a checkpoint's ``own`` config.json, or the one in the folder of its ``base``.

        Raises:
            LiraError: see :meth:`from_internvl`; or a file is missing or no JSON.
        """
        if own is not None:
            return cls.from_dict(read_json(own, "a LIRA checkpoint's configuration"), name, own)
        path = base / "config.json"
        return cls.from_internvl(read_json(path, "the base model's configuration"), name, path)

    @classmethod
    def from_internvl(cls, data: Mapping[str, Any], name: str, source: Path) -> LiraConfig:
        """Read InternVL2's config.json; take upstream's published constants for the rest.

        Raises:
            LiraError: a key is missing, or its value is not of its kind or beyond any sense.
        """
        top = Section(data, str(source))
        vision = _vision(top)
        return cls(
            name=name,
            vision=vision,
            llm=_llm(top.section("llm_config"), added=len(LIRA_TOKENS)),
            pixel=PixelConfig(),
            tiles=replace(TILES, size=vision.image_size),
            synthetic=top.flag("synthetic", False),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str, source: Path) -> LiraConfig:
        """Read one config.json that says everything, in InternVL2's names where they exist.

        Raises:
            LiraError: see :meth:`from_internvl`.
        """
        top = Section(data, str(source))
        encoder = top.section("pixel_encoder")
        pixel = _pixel(encoder)
        vision = _vision(top)
        llm = _llm(top.section("llm_config"), added=0)
        projector = ProjectorConfig(
            depth=top.section("projector").integer("depth", most=16),
            cross_heads=top.section("projector").integer("cross_head_num", most=1024),
            text2vision_depth=top.section("projector_text2vision").integer("depth", most=16),
        )
        if llm.hidden_size % projector.cross_heads:
            raise top.section("projector").error(
                "cross_head_num",
                projector.cross_heads,
                f"a divisor of the language model's {llm.hidden_size}",
            )
        preprocessing = top.section("preprocessing", {})
        if "prompts" in top:
            top.section("prompts")  # prompts_of reads it, and expects an object
        return cls(
            name=top.text("name", name),
            vision=vision,
            llm=llm,
            pixel=pixel,
            projector=projector,
            lora=LoraConfig.read(top.section("lora")),
            tiles=_tiles(top, preprocessing.section("tile", {}), vision),
            pixels=_pixels(preprocessing.section("pixel", {}), pixel),
            special_token_ids={
                token: ids.integer(token, least=0, most=_MOST_TOKENS)
                for ids in [top.section("special_token_ids", {})]
                for token in ids.keys
            },
            bos_token_id=top.integer("bos_token_id", None, least=0, most=_MOST_TOKENS),
            synthetic=top.flag("synthetic", False),
            space_p_token_ids=(
                top.integers("space_p_token_ids", least=0, most=_MOST_TOKENS)
                if "space_p_token_ids" in top
                else None
            ),
            prompts=top.value("prompts"),
            context_length=top.integer("context_length", None, most=_MOST_POSITIONS),
        )


def _vision(top: Section) -> VisionConfig:
    vision = top.section("vision_config")
    vision.fixed("hidden_act", "gelu")
    vision.fixed("norm_type", "layer_norm")
    vision.fixed("qk_normalization", False)
    vision.fixed("qkv_bias", True)
    top.fixed("select_layer", -1)
    top.fixed("ps_version", "v2")
    ratio = top.number("downsample_ratio", 0.5)
    shuffle = round(1 / ratio) if ratio > 1e-3 else 0
    if shuffle < 1 or abs(shuffle * ratio - 1) > 1e-6:
        raise top.error("downsample_ratio", ratio, "1 over an integer, such as 0.5")
    config = VisionConfig(
        hidden_size=vision.integer("hidden_size", most=_MOST_WIDTH),
        intermediate_size=vision.integer("intermediate_size"),
        num_layers=vision.integer("num_hidden_layers", most=_MOST_LAYERS),
        num_heads=vision.integer("num_attention_heads", most=_MOST_HEADS),
        image_size=vision.integer("image_size", most=_MOST_PIXELS),
        patch_size=vision.integer("patch_size", most=_MOST_PIXELS),
        layer_norm_eps=vision.number("layer_norm_eps", 1e-6),
        shuffle=shuffle,
    )
    _divides(vision, "num_attention_heads", config.num_heads, config.hidden_size, "hidden_size")
    _divides(vision, "patch_size", config.patch_size * shuffle, config.image_size, "image_size")
    return config


def _llm(llm: Section, added: int) -> LlmConfig:
    llm.fixed("hidden_act", "silu")
    llm.fixed("use_sliding_window", False)
    theta, factor = _rope(llm)
    config = LlmConfig(
        vocab_size=llm.integer("vocab_size", most=_MOST_TOKENS) + added,
        hidden_size=llm.integer("hidden_size", most=_MOST_WIDTH),
        intermediate_size=llm.integer("intermediate_size"),
        num_layers=llm.integer("num_hidden_layers", most=_MOST_LAYERS),
        num_heads=llm.integer("num_attention_heads", most=_MOST_HEADS),
        num_kv_heads=llm.integer("num_key_value_heads", most=_MOST_HEADS),
        rope_theta=theta,
        rms_norm_eps=llm.number("rms_norm_eps"),
        max_position_embeddings=llm.integer("max_position_embeddings", most=_MOST_POSITIONS),
        rope_scaling_factor=factor,
        family=family_of(llm.text("model_type", DEFAULT.name)).name,
        tie_word_embeddings=llm.flag("tie_word_embeddings", False),
    )
    _divides(llm, "num_attention_heads", config.num_heads * 2, config.hidden_size, "hidden_size")
    _divides(llm, "num_key_value_heads", config.num_kv_heads, config.num_heads, "num_attention_heads")
    llm.fixed("head_dim", config.head_dim)
    return config


def _rope(llm: Section) -> tuple[float, float | None]:
    """Return the base of the rotary embedding, and the factor of dynamic NTK or None.

    Transformers before 5 writes rope_theta and rope_scaling {type or rope_type, factor}, since then
    rope_parameters {rope_theta, rope_type, factor}.
    """
    newer = "rope_parameters" in llm and llm.value("rope_parameters") is not None
    if newer and llm.value("rope_scaling") is not None:
        raise llm.error("rope_scaling", llm.value("rope_scaling"), "none beside rope_parameters")
    key = "rope_parameters" if newer else "rope_scaling"
    scaling = llm.section(key) if llm.value(key) is not None else Section({}, f"{llm.where}.{key}")
    theta = (scaling if "rope_theta" in scaling else llm).number("rope_theta")
    if newer and "rope_theta" in llm and llm.number("rope_theta") != theta:
        raise llm.error("rope_theta", llm.value("rope_theta"), f"{theta:g}, as rope_parameters has it")
    named = "rope_type" if "rope_type" in scaling else "type"
    kind = scaling.text(named, "default") if newer or not scaling.keys else scaling.text(named)
    if kind not in ("default", "dynamic"):
        raise scaling.error(named, kind, "dynamic or default")
    return theta, scaling.number("factor", least=1.0) if kind == "dynamic" else None


def _pixel(encoder: Section) -> PixelConfig:
    backbone, head = encoder.section("backbone"), encoder.section("panoptic_head")
    decoder, transformer = head.section("pixel_decoder"), head.section("transformer_decoder")
    ratio = encoder.value("pixel_shuffle_down_ratio")
    config = PixelConfig(
        image_size=encoder.integer("image_size", most=_MOST_PIXELS),
        dims=backbone.integers("dims", most=_MOST_WIDTH),
        depths=backbone.integers("depths", most=_MOST_LAYERS),
        cell_shuffle=1 if ratio is None else encoder.integer("pixel_shuffle_down_ratio", most=16),
        feat_channels=head.integer("feat_channels", most=_MOST_WIDTH),
        num_classes=head.integer("num_things_classes", least=0) + head.integer("num_stuff_classes", least=0),
        num_queries=head.integer("num_queries", most=1 << 14),
        num_heads=decoder.integer("num_heads", most=_MOST_HEADS),
        num_levels=decoder.integer("num_levels", least=3, most=3),
        num_points=decoder.integer("num_points", most=64),
        num_groups=decoder.integer("num_groups", most=_MOST_WIDTH),
        encoder_layers=decoder.integer("num_layers", most=_MOST_LAYERS),
        encoder_ffn=decoder.integer("feedforward_channels"),
        decoder_layers=transformer.integer("num_layers", most=_MOST_LAYERS),
        decoder_heads=transformer.integer("num_heads", most=_MOST_HEADS),
        decoder_ffn=transformer.integer("feedforward_channels"),
        clip_embed_dim=backbone.integer("clip_embed_dim", most=_MOST_WIDTH),
        logit_scale_ln=head.number("logit_scale_ln", least=-100),
        prompt_num_feats=head.integer(
            "visual_prompt_coordinate_num_feats", head.integer("feat_channels", most=_MOST_WIDTH) // 2
        ),
    )
    for key in ("dims", "depths"):
        if len(getattr(config, key)) != 4:
            raise backbone.error(key, list(getattr(config, key)), "four integers, one for each stage")
    _divides(encoder, "pixel_shuffle_down_ratio", 32 * config.cell_shuffle, config.image_size, "image_size")
    for section, key, count in (
        (decoder, "num_heads", config.num_heads),
        (decoder, "num_groups", config.num_groups),
        (transformer, "num_heads", config.decoder_heads),
    ):
        _divides(section, key, count, config.feat_channels, "feat_channels")
    return config


def _tiles(top: Section, tile: Section, vision: VisionConfig) -> TileSpec:
    tile.fixed("size", vision.image_size)
    least = tile.integer("min_num", top.integer("min_dynamic_patch", 1, most=_MOST_TILES), most=_MOST_TILES)
    most = tile.integer("max_num", top.integer("max_dynamic_patch", 6, most=_MOST_TILES), most=_MOST_TILES)
    if least > most:
        raise top.error("min_dynamic_patch", least, f"at most max_dynamic_patch, {most}")
    return TileSpec(
        size=vision.image_size,
        mean=tile.numbers("mean", 3) if "mean" in tile else TILES.mean,
        std=tile.numbers("std", 3, above=0) if "std" in tile else TILES.std,
        min_num=least,
        max_num=most,
        use_thumbnail=tile.flag("use_thumbnail", top.flag("use_thumbnail", True)),
    )


def _pixels(pixel: Section, sizes: PixelConfig) -> PixelSpec:
    """Read the bundle's keys, or those of transformers' image processors, which begin with ``image_``."""
    pixel.fixed("image_size", sizes.image_size)
    pixel.fixed("size", sizes.image_size)

    def key(name: str) -> str:
        return f"image_{name}" if f"image_{name}" in pixel else name

    color = "pad_color"
    return PixelSpec(
        size=sizes.image_size,
        mean=pixel.numbers(key("mean"), 3) if key("mean") in pixel else PIXELS.mean,
        std=pixel.numbers(key("std"), 3, above=0) if key("std") in pixel else PIXELS.std,
        pad_color=pixel.integers(color, least=0, most=255) if color in pixel else PIXELS.pad_color,
    )


def _divides(section: Section, key: str, part: int, whole: int, of: str) -> None:
    if whole % part:
        raise LiraError(
            f"{section.where}: {of} is {whole} and {key} {section.value(key)}, expected a multiple of {part}"
        )
