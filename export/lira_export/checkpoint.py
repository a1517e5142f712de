"""Read a LIRA checkpoint: map upstream's five files to the reference model's tensors.

=========  ==============================================================================
lira       token embeddings, LM head, LoRA pairs, projector, text-to-vision projection
base       InternVL2: config.json, *.safetensors (tile encoder, mlp1, language model), tokenizer
head       Mask2Former head with its pixel decoder
clip       CLIP ConvNeXt trunk
classes    class embeddings [classes, prototypes, dim]
=========  ==============================================================================

Only tensors are unpickled. They are read one at a time, when they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lira_engine.errors import LiraError

from .config import LiraConfig
from .families import FAMILIES, LLM_PREFIX, family_of
from .families.family import Packing
from .misfits import Misfits, not_a_float, published_sizes, refuse_empty
from .model.lira import Lira
from .model.mask_decoder import MaskDecoder
from .parts import BASE, has_parts
from .pth_files import open_pth
from .sources import CheckpointFiles, locate
from .storage import Storage
from .tensor_files import FLOATS, TensorFile, open_base, open_safetensors, stored_dtype
from .upstream_names import UNUSED, is_derived, vision_source

Part = TypeVar("Part", bound=nn.Module)


@dataclass
class _Plan:
    """How to make the model's tensors, and which of the files' tensors do not fit."""

    misfits: Misfits
    makers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)


class Checkpoint:
    """A checked checkpoint: every tensor is there with its shape, none is left over.

    Attributes:
        config: sizes and constants. files: where its parts lie.
        lora_rank, lora_alpha, lora_scale: of the merged adapters.
        notes: one line for each change while reading (rows that were added, fp64 read as fp32).
    """

    def __init__(self, files: CheckpointFiles, config: LiraConfig) -> None:
        self.files = files
        self.family = family_of(config.llm.family)
        self.base = files.base
        self.notes: list[str] = []
        self._sources: dict[str, TensorFile] = {
            role: open_safetensors([path]) if path.suffix == ".safetensors" else open_pth(path)
            for role, path in files.paths.items()
        }
        self._sources[BASE] = open_base(files.base)
        self.config = self._with_own_vocabulary(config)
        self._class_embed = self._read_class_embed()
        self.lora_rank = self._lora_rank()
        self.lora_alpha = config.lora.scaled_alpha(self.lora_rank)
        self.lora_scale = config.lora.scale(self.lora_rank)
        with torch.device("meta"):
            parameters = Lira(self.config).named_parameters()
            self._shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
        self._makers = self._plan()
        self._note_float64()

    @classmethod
    def open(cls, checkpoint: CheckpointFiles | str | Path, config: LiraConfig | None = None) -> Checkpoint:
        """Open and check a checkpoint: its parts, or the folder that holds them.

        ``config`` replaces the checkpoint's own configuration.

        Raises:
            LiraError: a file is missing, unreadable or holds more than tensors, or tensors are missing,
                unexpected or misshapen: one error lists the first, with both shapes, and counts the rest.
        """
        files = checkpoint if isinstance(checkpoint, CheckpointFiles) else locate(checkpoint)
        return cls(files, config or LiraConfig.from_files(files.config, files.base, files.name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def tensor(self, name: str) -> Tensor:
        """Return a contiguous copy of a parameter in fp32, LoRA merged, by the reference model's name."""
        return self._makers[name]().contiguous()

    def load_model(self) -> Lira:
        """Return the reference model in eval mode, fp32."""
        return self.load_part(lambda: Lira(self.config, prototypes=self._class_embed.shape[1]), "")

    def load_part(self, make: Callable[[], Part], prefix: str, storage: Storage = Storage.EXACT) -> Part:
        """Return a part of the reference model in eval mode, fp32, with the values that ``storage`` keeps.

        ``prefix``: of its parameters' names in the whole model.
        """
        with torch.device("meta"):
            part = make()
        names = [name for name, _ in part.named_parameters()]
        state = {name: storage.fit(prefix + name, self.tensor(prefix + name)) for name in names}
        part.load_state_dict(state, strict=True, assign=True)
        for module in part.modules():
            if isinstance(module, MaskDecoder):  # not in state_dict(), which holds what was trained
                module.class_embed = self._class_embed
        return part.eval().requires_grad_(False)

    def describe(self) -> tuple[str, list[tuple[str, ...]]]:
        """Return title and rows of a table: the files, then the model's sizes."""
        rows: list[tuple[str, ...]] = [("file", "tensors", "parameters", "MiB", "dtype")]
        for role, source in self._sources.items():
            paths = self.paths(role)
            size = sum(path.stat().st_size for path in paths)
            parameters = sum(math.prod(shape) for shape in source.shapes.values())
            count = f" ({len(paths)} files)" if len(paths) > 1 else ""
            rows.append(
                (
                    self._file_name(role) + count,
                    str(len(source.shapes)),
                    f"{parameters:,}",
                    f"{size / 2**20:.1f}",
                    ", ".join(sorted(set(source.dtypes.values()))),
                )
            )
        c = self.config
        sizes = {
            "LoRA": f"rank {self.lora_rank}, alpha {self.lora_alpha:g}",
            "language model": f"{c.llm.family}, {c.llm.num_layers} layers, width {c.llm.hidden_size}, "
            f"{c.llm.num_heads} heads, {c.llm.num_kv_heads} KV heads, {c.llm.vocab_size} tokens",
            "tile encoder": f"{c.vision.num_layers} layers, width {c.vision.hidden_size}, "
            f"{c.vision.image_size} pixels, {c.vision.tokens_per_tile} tokens per tile",
            "pixel encoder": f"{c.pixel.image_size} pixels, {c.pixel.num_queries} queries, "
            f"{c.pixel.grid} x {c.pixel.grid} cells, {c.pixel.num_classes} classes",
        }
        rows += [*sizes.items(), *(("note", note) for note in self.notes)]
        return f"checkpoint {c.name}", rows

    def paths(self, part: str) -> list[Path]:
        """Return the files that hold a part's tensors."""
        return sorted(set(self._sources[part].files.values()))

    @property
    def stored_dtype(self) -> str:
        """Dtype of the base model's weights, as torch calls it; float32 if they differ."""
        return stored_dtype(self._sources[BASE])

    @property
    def class_embed(self) -> Tensor:
        """Class embeddings [classes, prototypes, dim], fp32."""
        return self._class_embed

    def _with_own_vocabulary(self, config: LiraConfig) -> LiraConfig:
        """Return the configuration with the rows of LIRA's table, if the base model's is padded.

        Raises:
            LiraError: the file holds another family's language model.
        """
        shapes, path = self._sources["lira"].shapes, self.files.paths["lira"]
        tables = {name: f"{LLM_PREFIX}{family.embeddings}.weight" for name, family in FAMILIES.items()}
        rows = shapes.get(tables[self.family.name], (None,))[0]
        others = [name for name, table in tables.items() if table in shapes]
        if rows is None and others:
            raise LiraError(
                f"{path} was trained on {others[0]}, {self.base / 'config.json'} is {self.family.name}: put "
                "the base model there that it was trained on"
            )
        if rows is None or not self.family.padded_vocabulary:
            return config
        return replace(config, llm=replace(config.llm, vocab_size=rows))

    def _read_class_embed(self) -> Tensor:
        path = self.files.paths["classes"]
        loaded = self._sources["classes"]
        name = next(iter(loaded.shapes))
        if loaded.dtypes[name] not in FLOATS:
            raise LiraError(f"{path}: {not_a_float(loaded, name)}")
        shape, pixel = loaded.shapes[name], self.config.pixel
        if len(shape) != 3 or (shape[0], shape[2]) != (pixel.num_classes, pixel.clip_embed_dim):
            expected = f"({pixel.num_classes}, prototypes, {pixel.clip_embed_dim})"
            raise LiraError(
                f"{path}: found class embeddings of shape {shape}, expected {expected}."
                f"{published_sizes(self.files)}"
            )
        return loaded.read(name)

    def _lora_rank(self) -> int:
        shapes, path = self._sources["lira"].shapes, self.files.paths["lira"]
        adapters = {name: shape for name, shape in shapes.items() if ".lora_A." in name}
        rank = next(
            (s[0] for n, s in adapters.items() if n.endswith("lora_A.default.weight") and len(s) == 2), None
        )
        if rank:
            self._refuse_other_rank(rank)
            return rank
        if rank == 0:
            raise LiraError(f"{path}: the adapters have rank 0, expected 1 or more: take another checkpoint")
        refuse_empty(self.files, [name for name, shape in shapes.items() if 0 in shape])
        found = f"found {next(iter(adapters))}, " if adapters else "no LoRA weights found, "
        raise LiraError(
            f"{path}: {found}expected {LLM_PREFIX}model.layers.0."
            f"{self.family.linears[0].name}.lora_A.default.weight and its siblings; is this upstream's LIRA "
            "checkpoint?"
        )

    def _refuse_other_rank(self, rank: int) -> None:
        said = self.config.lora.rank
        if said not in (None, rank):
            raise LiraError(
                f"{self.files.config or self.files.where}: lora.r is {said}, the adapters in "
                f"{self._file_name('lira')} have rank {rank}: correct it, and lora_alpha with it, or take "
                "the file that it is of"
            )

    def _note_float64(self) -> None:
        for role, source in self._sources.items():
            count = list(source.dtypes.values()).count("float64")
            if count:
                self.notes.append(f"{self._file_name(role)}: {count} tensors are float64, read as float32")

    def _plan(self) -> dict[str, Callable[[], Tensor]]:
        """Match every parameter with upstream's tensors. Raises LiraError if any is missing or left over."""
        plan = _Plan(Misfits(self.files), used={role: set() for role in self._sources})
        for name, shape in self._shapes.items():
            if not name.startswith("llm."):
                role, upstream = vision_source(name)
                plan.makers[name] = self._expect(plan, role, upstream, shape)
        self._plan_llm(plan)
        tables = (self.family.embeddings, self.family.head)
        unused = {
            "lira": tuple(
                f"{LLM_PREFIX}{name}." for name in tables[1:] if self.config.llm.tie_word_embeddings
            ),
            "base": tuple(f"language_model.{name}." for name in tables),  # LIRA's override them
            **UNUSED,
        }
        for role, source in self._sources.items():
            if role == "classes":
                continue
            for name in source.shapes:
                if name not in plan.used[role] and not name.startswith(unused[role]) and not is_derived(name):
                    plan.misfits.unexpected.append(
                        f"unexpected {name} {source.shapes[name]} in {self._file_name(role)}"
                    )
        plan.misfits.refuse()
        return plan.makers

    def _plan_llm(self, plan: _Plan) -> None:
        family, shapes = self.family, self._shapes
        for i in range(self.config.llm.num_layers):
            ours, theirs = f"llm.layers.{i}.", f"model.layers.{i}."
            for linear in family.linears:
                names = [f"{ours}{part}.weight" for part in linear.parts]
                shape = (sum(shapes[name][0] for name in names), shapes[names[0]][1])
                stem = theirs + linear.name
                merged = self._merged(plan, "base", f"language_model.{stem}.weight", stem, shape)
                for part, name in zip(linear.parts, names, strict=True):
                    plan.makers[name] = self._part(merged, part, linear.packing)
                if linear.bias:
                    name = f"{ours}{linear.parts[0]}.bias"
                    plan.makers[name] = self._expect(
                        plan, "base", f"language_model.{stem}.bias", shapes[name]
                    )
            for norm, upstream in family.norms.items():
                name = f"{ours}{norm}.weight"
                plan.makers[name] = self._expect(
                    plan, "base", f"language_model.{theirs}{upstream}.weight", shapes[name]
                )
        plan.makers["llm.norm.weight"] = self._expect(
            plan, "base", "language_model.model.norm.weight", shapes["llm.norm.weight"]
        )
        table = shapes["llm.tok_embeddings.weight"]
        embeddings = f"{LLM_PREFIX}{family.embeddings}.weight"
        plan.makers["llm.tok_embeddings.weight"] = self._expect(plan, "lira", embeddings, table, grow="mean")
        head = LLM_PREFIX + family.head
        if self.config.llm.tie_word_embeddings:
            plan.makers["llm.lm_head.weight"] = plan.makers["llm.tok_embeddings.weight"]
        elif family.head_is_adapted:
            plan.makers["llm.lm_head.weight"] = self._merged(
                plan, "lira", f"{head}.base_layer.weight", family.head, table, grow=True
            )
        else:
            plan.makers["llm.lm_head.weight"] = self._expect(
                plan, "lira", f"{head}.weight", table, grow="mean"
            )

    def _merged(
        self, plan: _Plan, role: str, base: str, stem: str, shape: tuple[int, ...], grow: bool = False
    ) -> Callable[[], Tensor]:
        """Return what reads base + scale * B @ A."""
        read_base = self._expect(plan, role, base, shape, grow="mean" if grow else None)
        a, b = (f"{LLM_PREFIX}{stem}.lora_{x}.default.weight" for x in "AB")
        read_a = self._expect(plan, "lira", a, (self.lora_rank, shape[1]))
        read_b = self._expect(plan, "lira", b, (shape[0], self.lora_rank), grow="zeros" if grow else None)

        def merge() -> Tensor:
            return read_base().addmm_(read_b(), read_a(), alpha=self.lora_scale)

        return merge

    def _part(self, merged: Callable[[], Tensor], part: str, packing: Packing | None) -> Callable[[], Tensor]:
        """Return what reads one part of a linear layer, which may hold several."""
        llm = self.config.llm
        if packing is None:
            return merged
        return lambda: packing.unpack(merged(), llm.num_kv_heads, llm.head_dim)[part]

    def _expect(
        self, plan: _Plan, role: str, name: str, shape: tuple[int, ...], grow: str | None = None
    ) -> Callable[[], Tensor]:
        source = self._sources[role]
        plan.used[role].add(name)
        found = source.shapes.get(name)
        if found is None:
            plan.misfits.missing.append(f"missing {name} {shape} in {self._file_name(role)}")
            plan.misfits.missing_in_base += [name] if role == BASE else []
            return lambda: source.read(name)
        if grow and len(found) == 2 and found[1] == shape[1] and shape[0] - 6 <= found[0] < shape[0]:
            # Upstream's scripts add the rows of the vocabulary that a checkpoint lacks, with these values.
            plan.misfits.check(source, name, found, self._file_name(role))
            self.notes.append(f"{name}: {found[0]} rows, {shape[0] - found[0]} added ({grow})")
            return lambda: _grown(source.read(name), shape[0], grow)
        plan.misfits.check(source, name, shape, self._file_name(role))
        return lambda: source.read(name)

    def _file_name(self, role: str) -> str:
        return f"{self.base.name}/" if role == BASE else self.files.paths[role].name


def describe(path: Path) -> tuple[str, list[tuple[str, ...]]] | None:
    """Return title and rows about a checkpoint folder, or None if ``path`` has none of its files.

    Raises:
        LiraError: see :meth:`Checkpoint.open`.
    """
    if not has_parts(path):
        return None
    return Checkpoint.open(path).describe()


def _grown(tensor: Tensor, rows: int, how: str) -> Tensor:
    new = tensor.mean(0, keepdim=True) if how == "mean" else torch.zeros(1, tensor.shape[1])
    return torch.cat([tensor, new.expand(rows - tensor.shape[0], -1)])
