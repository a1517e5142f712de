"""Count what a bundle's graphs cost: parameters, operations and bytes, as functions of their dimensions.

`python -m lira_bench.plan.graph_costs BUNDLE -o FILE` writes the costs file of a size that ships with the
package. Shapes are enough: no weight is read.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lira_bench.plan import activations, polynomial
from lira_bench.plan.operators import is_linear, operations
from lira_bench.plan.polynomial import Terms
from lira_engine.bundle import schema
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.bundle.manifest import MANIFEST_NAME, Manifest, ModelSpec
from lira_engine.errors import LiraError
from lira_engine.lowering.weights import weight_of
from lira_engine.system.atomic import atomic_write
from lira_engine.system.terminal import plain_console

FORMAT = "lira-costs"
FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "costs"


@dataclass(frozen=True)
class Matrix:
    """`count` constant weight matrices [inputs, outputs] of matmuls."""

    inputs: int
    outputs: int
    count: int


@dataclass(frozen=True)
class StageCosts:
    """One stage.

    Attributes:
        matrices: weights of linear layers, which quantized engines round.
        other_parameters: number of other floating-point constants: kernels, biases, scales, tables.
        operations: by kind (see `operators.Kind`), two for a multiply-add.
        peak: candidates for the peak bytes of intermediate values in fp32; the largest counts.
        products: number of nodes with counted operations.
        moved: bytes of intermediate values in fp32 that these nodes read and write.
        unfused: bytes that all other nodes read and write, if each runs by itself.
    """

    matrices: tuple[Matrix, ...]
    other_parameters: int
    operations: dict[str, Terms]
    peak: tuple[Terms, ...]
    products: int
    moved: Terms
    unfused: Terms

    @property
    def parameters(self) -> int:
        return self.other_parameters + sum(m.inputs * m.outputs * m.count for m in self.matrices)

    def flops(self, dims: polynomial.Dims) -> dict[str, float]:
        """Return the operations by kind."""
        return {kind: polynomial.value(terms, dims) for kind, terms in self.operations.items()}

    def peak_bytes(self, dims: polynomial.Dims) -> float:
        """Return the peak bytes of intermediate values in fp32."""
        return max((polynomial.value(terms, dims) for terms in self.peak), default=0.0)


@dataclass(frozen=True)
class ModelCosts:
    """A model.

    Attributes:
        tiles: most tiles of an image, the thumbnail included.
        region_rows: rows that a region appends: the token, its features, and the text after it.
        image_features: elements that the pixel encoder hands to the pixel decoder.
    """

    name: str
    model: ModelSpec
    tiles: int
    region_rows: int
    image_features: int
    stages: dict[str, StageCosts]

    def kv_elements(self) -> int:
        """Return the elements of one row of the KV cache."""
        return 2 * self.model.num_layers * self.model.num_kv_heads * self.model.head_dim


def count_graph(model: ir.Model) -> StageCosts:
    """Count a graph. Raises LiraError if a shape or the cost of an operator is not known."""
    graph = model.graph
    matrices: dict[str, tuple[int, int]] = {}
    counted: dict[str, Terms] = {}
    products = 0
    fixed = activations.constants(graph)
    for node in graph:
        if all(value in fixed for value in node.outputs):
            continue
        if is_linear(node):
            weight = weight_of(node.inputs[1])
            assert weight is not None and weight.name is not None and weight.shape is not None
            inputs, outputs = (int(size) for size in weight.shape)  # type: ignore[arg-type]
            matrices[weight.name] = (inputs, outputs)
        found = operations(node)
        if found is not None:
            products += 1
            kind, terms = found
            counted[kind] = polynomial.plus(counted.get(kind, {}), terms)
    moved, unfused = activations.moved(graph)
    sizes = sorted(Counter(matrices.values()).items())
    return StageCosts(
        matrices=tuple(Matrix(inputs, outputs, count) for (inputs, outputs), count in sizes),
        other_parameters=parameters(graph) - sum(inputs * outputs for inputs, outputs in matrices.values()),
        operations=dict(sorted(counted.items())),
        peak=tuple(activations.peak(graph)),
        products=products,
        moved=moved,
        unfused=unfused,
    )


def parameters(graph: ir.Graph) -> int:
    """Return the number of elements of the floating-point initializers."""
    return sum(
        value.const_value.size
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    )


def count_bundle(path: Path) -> ModelCosts:
    """Count a bundle. Reads its graphs without weights, and hashes nothing.

    Raises LiraError for a folder that is no bundle.
    """
    bundle = Bundle.open(path, verify="sizes")
    manifest = bundle.manifest
    stages = {stage: count_graph(read_graph(bundle.stage_file(stage))) for stage in manifest.stages}
    tile = manifest.preprocessing.tile
    return ModelCosts(
        name=manifest.name,
        model=manifest.model,
        tiles=tile.max_num + (1 if tile.use_thumbnail and tile.max_num > 1 else 0),
        region_rows=1 + manifest.model.tokens_per_tile + len(manifest.tokens.region_suffix),
        image_features=_image_features(manifest),
        stages=stages,
    )


def _image_features(manifest: Manifest) -> int:
    kept = set(manifest.stages["pixel_decoder"].inputs) & set(manifest.stages["pixel_encoder"].outputs)
    outputs = manifest.stages["pixel_encoder"].outputs
    return sum(round(polynomial.value(polynomial.of(outputs[name].shape), {})) for name in kept)


def dumps(costs: ModelCosts) -> str:
    """Return the text of a costs file."""
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, **schema.write(costs)}
    return json.dumps(data, indent=1) + "\n"


def sizes() -> list[str]:
    """Return the names of the sizes whose costs ship with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.json"))


def load(size: str) -> ModelCosts:
    """Return the costs of a size that ships with the package, or of a bundle's folder.

    Raises LiraError if `size` is neither.
    """
    path = Path(size)
    if size in sizes():
        return _read(SHIPPED / f"{size}.json")
    if (path / MANIFEST_NAME).exists():
        return count_bundle(path)
    what = "a folder without lira.json" if path.is_dir() else "no size and no folder"
    raise LiraError(f"{size!r} is {what}; expected {', '.join(sizes())} or the folder of a bundle")


def _read(path: Path) -> ModelCosts:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LiraError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise LiraError(f'{path} is not a file of costs: it lacks "format": "{FORMAT}"')
    version = data.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise LiraError(f"{path} has format version {version}, expected {FORMAT_VERSION}")
    return schema.read(ModelCosts, data, str(path))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Count what a bundle's graphs cost.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    text = dumps(count_bundle(options.bundle))
    with atomic_write(options.output) as file:
        file.write(text.encode())
    plain_console().print(f"wrote {options.output}", soft_wrap=True)


if __name__ == "__main__":
    main()
