"""Check vectors: a stage's recorded inputs and reference outputs (`checks/STAGE.npz` in a bundle).

The file holds arrays `in.NAME`, `out.NAME`, `noise.NAME` and `margin.NAME`, by the names of the stage's
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lira_engine.bundle.arrays import read_archive
from lira_engine.bundle.manifest import MEND, StageSpec, TensorSpec
from lira_engine.errors import LiraError


@dataclass(frozen=True)
class CheckVectors:
    """Inputs of a stage and the outputs of the fp32 torch reference, by tensor name.

    `noise`: change of an output, relative to its largest value, when the inputs are perturbed by fp32
    rounding; for the outputs that the exporter measured; of booleans, of the sums that decide them.
    `margins`: how far each element of a boolean output was from coming out otherwise: the distance of the
    sums that decide it, relative to the largest of them; for outputs that comparisons of sums make, of
    bundles that record it.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    noise: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Write the file."""
        arrays = {f"in.{name}": array for name, array in self.inputs.items()}
        arrays |= {f"out.{name}": array for name, array in self.outputs.items()}
        arrays |= {f"noise.{name}": np.array(value) for name, value in self.noise.items()}
        arrays |= {f"margin.{name}": array for name, array in self.margins.items()}
        with open(file, "wb") as opened:
            np.savez(opened, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, file: Path, spec: StageSpec) -> CheckVectors:
        """Read the check vectors of the stage that `spec` declares.

        The language model's may lack the KV cache, which is large, if they begin with an empty one.
        Raises LiraError if the file cannot be read, lacks a tensor of `spec`, or has others, tensors of other
        shapes or dtypes, and rows that there are not.
        """
        arrays = read_archive(file, MEND)
        inputs = {name[3:]: array for name, array in arrays.items() if name.startswith("in.")}
        outputs = {name[4:]: array for name, array in arrays.items() if name.startswith("out.")}
        noise = {name[6:]: array for name, array in arrays.items() if name.startswith("noise.")}
        margins = {name[7:]: array for name, array in arrays.items() if name.startswith("margin.")}
        missing = (spec.inputs.keys() - inputs.keys()) | (spec.outputs.keys() - outputs.keys())
        if "position" in inputs and not inputs["position"].any():
            missing = {name for name in missing if not name.startswith(("key_cache", "value_cache"))}
        if missing:
            raise LiraError(f"{file} lacks check vectors for {', '.join(sorted(missing))}; {MEND}")
        sizes: dict[str, int] = {}
        for given, expected in ((inputs, spec.inputs), (outputs, spec.outputs)):
            for name, array in given.items():
                tensor = expected.get(name)
                if tensor is None:
                    raise LiraError(f"{file} has check vectors for {name}, which the stage lacks; {MEND}")
                if not _fits(array, tensor, sizes):
                    raise LiraError(
                        f"{file}: {name} is {array.dtype} {list(array.shape)}, expected {tensor.dtype} "
                        f"{list(tensor.shape)}; {MEND}"
                    )
        for name, array in margins.items():
            if name not in outputs or array.shape != outputs[name].shape:
                raise LiraError(f"{file}: margins of {name} do not fit its output; {MEND}")
        for name, array in noise.items():
            if name not in outputs or array.shape or not 0 <= array < np.inf:
                raise LiraError(f"{file}: noise of {name} is not one number of an output; {MEND}")
        asked = inputs.get("logit_positions", np.zeros(1))
        if not ((asked >= 0) & (asked < sizes.get("S", 1))).all():
            raise LiraError(f"{file} asks for rows that it does not have; {MEND}")
        return cls(inputs, outputs, {name: float(array) for name, array in noise.items()}, margins)


def _fits(array: np.ndarray, spec: TensorSpec, sizes: dict[str, int]) -> bool:
    """Return whether an array is what `spec` says. `sizes`: of dimensions with a name, which are added."""
    return (
        array.dtype.name == spec.dtype
        and len(array.shape) == len(spec.shape)
        and all(
            found > 0 and found == (sizes.setdefault(size, found) if isinstance(size, str) else size)
            for found, size in zip(array.shape, spec.shape, strict=True)
        )
    )
