"""The stand-ins have the names, and the argument names, of the real packages."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from lira_engine.cuda import by_bindings, by_pycuda

# From the source of pycuda 2026.1 (src/wrapper/wrap_cudadrv.cpp), which has no wheels.
PYCUDA = {
    "": "Error MemoryError init Device Stream Event event_flags mem_alloc mem_get_info pagelocked_empty "
    "memcpy_htod_async memcpy_dtoh_async memcpy_dtod_async memset_d8_async",
    "Device": "name compute_capability retain_primary_context",
    "Context": "push pop detach",
    "Stream": "handle synchronize wait_for_event",
    "Event": "record synchronize",
    "DeviceAllocation": "free",
    "event_flags": "DISABLE_TIMING",
}


def used(file: str, *owners: str) -> set[str]:
    """Return the attributes that a file reads of objects with these names."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value) in owners}


def test_the_driver_uses_only_what_pycuda_has() -> None:
    """Every name that the driver uses of pycuda's module, and of the objects that it makes."""
    file = inspect.getfile(by_pycuda)
    objects = used(file, "gpu", "self._context", "self.raw", "self._allocation", "self._cuda.event_flags")
    objects |= used(file, "raw") - {"nbytes", "ctypes"}  # an array's
    known = {name for of, names in PYCUDA.items() if of for name in names.split()}
    assert used(file, "cuda", "self._cuda") == set(PYCUDA[""].split())
    assert {"push", "detach", "wait_for_event", "record", "free", "DISABLE_TIMING"} <= objects <= known


def arguments(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def bindings_used() -> set[str]:
    return used(inspect.getfile(by_bindings), "cuda", "self._cuda")


def test_the_driver_uses_of_cuda_bindings_what_the_stand_in_has(card_with: Any) -> None:
    names = bindings_used()
    assert len(names) > 25
    assert {name for name in names if not hasattr(card_with("cuda-bindings").module, name)} == set()


def test_cuda_bindings_has_what_the_driver_uses(card_with: Any) -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    standin = card_with("cuda-bindings").module
    functions = 0
    for name in bindings_used():
        ours, theirs = getattr(standin, name), getattr(real, name)
        if inspect.isfunction(ours):
            functions += 1
            assert arguments(theirs) == arguments(ours), name
        else:
            for member in ours:
                assert int(getattr(theirs, member.name)) == member, f"{name}.{member.name}"
    assert functions > 20


def test_cuda_bindings_reads_arrays_for_copies() -> None:
    """A copy takes the array itself, also one that must not be written to. There is no context here: the
    call must come as far as CUDA, which refuses it, or to a libcuda that is not there."""
    real = pytest.importorskip("cuda.bindings.driver")
    import numpy as np

    array = np.arange(4)
    array.setflags(write=False)
    try:
        code = real.cuMemcpyHtoDAsync(16, array, array.nbytes, real.CUstream(0))[0]
    except RuntimeError as error:
        assert "cuda" in str(error).lower()
    else:
        assert int(code) != 0
