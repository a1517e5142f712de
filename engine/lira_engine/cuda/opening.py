"""Open the GPU by the package that is there."""

from __future__ import annotations

import importlib

from lira_engine.cuda.by_pycuda import cuda_driver
from lira_engine.cuda.driver import Driver, DriverName
from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.extras import install_line


def open_driver(choice: DriverName = "auto") -> Driver:
    """Open the first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses).

    Raises LiraError if pycuda is missing or does not load, or if CUDA finds no GPU.
    """
    try:
        with memory_errors_told():
            cuda = importlib.import_module("pycuda.driver")
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, ModuleNotFoundError):
            raise LiraError(f"CUDA's calls need pycuda ({reason}): {install_line('pycuda')}") from None
        # libcuda comes with the driver, pycuda's other libraries with the CUDA that it was compiled with.
        mend = (
            "install NVIDIA's driver (or let the container see it): `nvidia-smi` must name the GPU"
            if "libcuda." in reason
            else "install the driver, and compile pycuda with the installed CUDA: "
            "pip install --force-reinstall --no-cache-dir pycuda"
        )
        raise LiraError(f"pycuda is there and does not load ({reason}): {mend}") from None
    return cuda_driver(cuda)
