"""What passes over attention share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

Fused = Callable[[int, int], bool]
"""(query heads, columns of a head) -> whether an engine runs `Attention` of these sizes as it is."""

# Half of the lowest number: a score added to it does not overflow, and its weight underflows to zero.
BLOCKED = {
    ir.DataType.FLOAT: float(np.finfo(np.float32).min / 2),
    ir.DataType.FLOAT16: float(np.finfo(np.float16).min / 2),
}


def none_fused(heads: int, columns: int) -> bool:
    return False
