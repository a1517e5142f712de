#!/usr/bin/env bash
# Usage: tests/hollow/install.sh ENVIRONMENT
# An environment with the real onnxruntime-gpu and both CUDA drivers, and the hollow CUDA in ENVIRONMENT/cuda. Needs a
# network, gcc and g++; no GPU, no CUDA. CUDA's and cuDNN's own libraries stay out: they would be found first.
set -euo pipefail
environment=$1
here=$(dirname "${BASH_SOURCE[0]}")
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
python=$environment/bin/python

"${PYTHON:-python3}" -m venv "$environment"
"$python" -m pip install onnxruntime-gpu cuda-bindings nvidia-ml-py 'pytest>=8' -e "$here/../..[bench]"
"$python" -m pip install --no-deps --upgrade --target "$environment/headers" nvidia-cuda-{runtime,crt,profiler-api}
include=$(dirname "$environment"/headers/nvidia/*/include/cuda.h)
rm -rf "${include%/include}/lib"
"$python" "$here/make.py" "$environment/cuda" "$include"

# pycuda is compiled, and linked with the hollow driver. Its random numbers need a library more, its options a home.
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
echo 'CUDA_ENABLE_CURAND = False' > "$home/.aksetup-defaults.py"
include=$(realpath "$include") libraries=$(realpath "$environment/cuda")
HOME=$home CPATH=$include LIBRARY_PATH=$libraries "$python" -m pip install --no-cache-dir 'pycuda>=2024.1' ||
    echo "pycuda does not compile here: its tests are skipped"
