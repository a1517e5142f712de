"""Collect the tensors of a checkpoint that do not fit, so that one error says what is wrong as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lira_engine.errors import LiraError

from .sources import CheckpointFiles
from .tensor_files import FLOATS, TensorFile, unlisted_shards

Shape = tuple[int, ...]
_KINDS = ("missing", "misshapen", "unexpected")
_FEW = 4  # so many misfits, or fewer, are all listed


@dataclass
class Misfits:
    """Tensors, by upstream's names, that the model does not take, in the order in which they were found."""

    files: CheckpointFiles
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    missing_in_base: list[str] = field(default_factory=list)

    def check(self, source: TensorFile, name: str, shape: Shape, where: str) -> None:
        """Note an existing tensor that is empty, no float, or of another shape."""
        found = source.shapes[name]
        if 0 in found:
            self.empty.append(name)
        elif source.dtypes[name] not in FLOATS:
            self.unreadable.append(not_a_float(source, name))
        elif found != shape:
            self.misshapen.append(f"misshapen {name}: expected {shape}, found {found} in {where}")

    def refuse(self) -> None:
        """Raise LiraError if anything was noted."""
        refuse_empty(self.files, self.empty)
        if self.unreadable:
            more = f" (and {len(self.unreadable) - 1} more)" if len(self.unreadable) > 1 else ""
            raise LiraError(f"{self.files.where}: {self.unreadable[0]}{more}")
        self._refuse_unlisted(self.files.base)
        problems = self.missing + self.misshapen + self.unexpected
        if not problems:
            return
        count = f"{len(problems)} tensors do not fit" if len(problems) > 1 else "a tensor does not fit"
        listed, kinds = problems, ""
        if len(problems) > _FEW:
            listed = problems[:1]
            kinds = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in _KINDS)
            kinds = f" ({kinds})"
        raise LiraError(
            f"{self.files.where}: {count} the configuration{kinds}: wrong base model or a damaged download?"
            f"{published_sizes(self.files)}\n  " + "\n  ".join(listed)
        )

    def _refuse_unlisted(self, base: Path) -> None:
        unlisted = unlisted_shards(base) if self.missing_in_base else {}
        elsewhere = [name for name in self.missing_in_base if name in unlisted]
        if elsewhere:
            raise LiraError(
                f"{base}: its index does not name {unlisted[elsewhere[0]]}, which holds {elsewhere[0]} (and "
                f"{len(elsewhere) - 1} more that are missing): download the index again, it is of other files"
            )


def refuse_empty(files: CheckpointFiles, names: list[str]) -> None:
    """Raise LiraError if there are any."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise LiraError(
            f"{files.where}: {names[0]}{more} without any value, as DeepSpeed's ZeRO-3 saves what it did not "
            "gather: convert the training's checkpoint by upstream's omg_llava/tools/convert_deepspeed2pth.py"
        )


def not_a_float(source: TensorFile, name: str) -> str:
    """Return the message about a tensor that is no float."""
    return (
        f"{name} in {source.files[name].name} is {source.dtypes[name]}, expected one of {', '.join(FLOATS)}: "
        "take the checkpoint that was not quantised or converted"
    )


def published_sizes(files: CheckpointFiles) -> str:
    """Return a note that sizes are the published ones, if no configuration says any."""
    return " Sizes are the published ones: --config says others" if files.config is None else ""
