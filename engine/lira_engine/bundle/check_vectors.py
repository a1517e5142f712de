"""Check vectors: a stage's recorded inputs and reference outputs (`checks/STAGE.npz` in a bundle).

The file holds arrays `in.NAME`, `out.NAME`, `noise.NAME` and `margin.NAME`, by the names of the stage's
tensors.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lira_engine.bundle.manifest import MEND, StageSpec
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
        Raises LiraError if the file cannot be read or lacks a tensor of `spec`.
        """
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise LiraError(f"{file} cannot be read ({str(error).splitlines()[0]}); {MEND}") from None
        inputs = {name[3:]: array for name, array in arrays.items() if name.startswith("in.")}
        outputs = {name[4:]: array for name, array in arrays.items() if name.startswith("out.")}
        missing = (spec.inputs.keys() - inputs.keys()) | (spec.outputs.keys() - outputs.keys())
        if "position" in inputs and not inputs["position"].any():
            missing = {name for name in missing if not name.startswith(("key_cache", "value_cache"))}
        if missing:
            raise LiraError(f"{file} lacks check vectors for {', '.join(sorted(missing))}; {MEND}")
        noise = {name[6:]: float(array) for name, array in arrays.items() if name.startswith("noise.")}
        margins = {name[7:]: array for name, array in arrays.items() if name.startswith("margin.")}
        for name, array in margins.items():
            if name not in outputs or array.shape != outputs[name].shape:
                raise LiraError(f"{file}: margins of {name} do not fit its output; {MEND}")
        return cls(inputs, outputs, noise, margins)
