"""Makes a hollow CUDA, to see what host code does where there is no GPU.

    python tests/hollow/make.py DIR [INCLUDE]
    LD_LIBRARY_PATH=DIR PATH=DIR:$PATH lira-edge doctor

Device memory, copies, streams, events and graphs are real; kernels, cuBLAS and cuDNN do nothing, so outputs
are zeros. Nothing that is computed or timed on it means anything. It needs Linux, onnxruntime-gpu in this
Python, g++ and binutils, and CUDA's headers in INCLUDE: a toolkit's (/usr/local/cuda/include), or those of
wheels. install.sh brings all of it but the compiler.

Environment of a program that runs on it:
    HOLLOW_LOG          file that says at the end what the program asked for, as JSON
    HOLLOW_ERROR        35: the driver is too old; 100: there is no device
    HOLLOW_MEMORY_MIB   the card's memory; cudaMalloc fails beyond it
"""

from __future__ import annotations

import importlib.util
import mmap
import re
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent / "cuda"
CORE = "libhollow.so"
CORE_SOURCES = ("log", "memory", "contexts", "streams", "card")
HEADERS = ("cuda.h", "cudaProfiler.h", "crt/host_defines.h")
HEADER_WHEELS = "nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-profiler-api"
SMI = """#!/bin/sh
# What `nvidia-smi --query-gpu=FIELDS` says of the hollow card. Other fields are unknown to it.
driver=580.0
case "$HOLLOW_ERROR" in 35) driver=535.0 ;; 100) echo "No devices were found"; exit 6 ;; esac
case "$*" in
*=compute_cap\ *) echo 9.0 ;;
*=name,memory.total,driver_version\ *) echo "Hollow H100, ${HOLLOW_MEMORY_MIB:-81559} MiB, $driver" ;;
*) echo "Field is not a valid field to query."; exit 2 ;;
esac
"""


def make(out: Path, headers: Path) -> None:
    """Write the libraries into `out`. Raises SystemExit with what is missing."""
    lacking = [name for name in HEADERS if not (headers / name).is_file()]
    if lacking:
        sys.exit(f"{headers} lacks {' and '.join(lacking)}: pip install {HEADER_WHEELS}")
    out.mkdir(parents=True, exist_ok=True)
    version = re.search(r"^#define CUDA_VERSION (\d+)", (headers / "cuda.h").read_text(), re.M)
    provider = provider_library()
    needed = run("readelf", "-d", provider)
    majors = {name: f"{name}.so.{number}" for name, number in re.findall(r"\[(lib\w+)\.so\.(\d+)\]", needed)}
    major = majors["libcudart"].rpartition(".")[2]
    if version is None or int(version[1]) // 1000 != int(major):
        sys.exit(f"{provider} is for CUDA {major}, {headers} is of another one")
    undefined = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "-u", provider).splitlines()}

    def wanted(pattern: str) -> set[str]:
        return {name for name in undefined if re.match(pattern, name)}

    symbols = driver_symbols(headers)
    (out / "symbols.h").write_text("".join(f'{{"{name}", "{real}"}},\n' for name, real in symbols.items()))
    link(out, CORE, [compile_source(out, SOURCES / f"{name}.cpp", headers) for name in CORE_SOURCES], ())
    for sources, soname, names in (
        (("runtime_memory", "runtime_work"), majors["libcudart"], wanted(r"_*cuda")),
        (("driver_memory", "driver_work"), "libcuda.so.1", set(symbols.values())),
        (("cublas",), majors["libcublas"], wanted("cublas(?!Lt)")),
        (("cublasLt",), majors["libcublasLt"], wanted("cublasLt")),
        (("cudnn",), "libcudnn.so.9", cudnn_names(provider)),
        (("nvml",), "libnvidia-ml.so.1", set()),
        ((), majors["libcurand"], set()),  # loaded, and not asked for anything
    ):
        written = [compile_source(out, SOURCES / f"{source}.cpp", headers) for source in sources]
        defined = {
            line.split()[-1] for one in written for line in run("nm", "--defined-only", one).splitlines()
        }
        stubs = out / f"{soname}-stubs.cpp"
        lines = (f"{kind_of(name)}({name})" for name in sorted(names - defined))
        stubs.write_text('#include "stubs.h"\n' + "\n".join(lines) + "\n")
        link(out, soname, [*written, compile_source(out, stubs, headers)], ("-L", str(out), "-lhollow"))
    (out / "libcuda.so").unlink(missing_ok=True)
    (out / "libcuda.so").symlink_to("libcuda.so.1")  # pycuda is linked with it
    for leftover in (*out.glob("*.o"), *out.glob("*.cpp"), *out.glob("*.map"), out / "symbols.h"):
        leftover.unlink()
    smi = out / "nvidia-smi"
    smi.write_text(SMI)
    smi.chmod(0o755)


def provider_library() -> Path:
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.origin).parent if found and found.origin else Path("onnxruntime")
    provider = folder / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.is_file():
        sys.exit(f"no {provider}: pip install onnxruntime-gpu")
    return provider


def driver_symbols(headers: Path) -> dict[str, str]:
    """The functions of cuda.h and cudaProfiler.h: what the library calls each (cuMemFree is cuMemFree_v2)."""

    def preprocessed(text: str, *options: str) -> str:
        given = f"#include <cuda.h>\n#include <cudaProfiler.h>\n{text}"
        return run("g++", "-E", *options, "-x", "c++", f"-I{headers}", "-", given=given)

    declared = set(re.findall(r"\b(cu[A-Z]\w+)\s*\(", preprocessed("", "-P")))
    macros = re.findall(r"^#define (cu[A-Z]\w+) ", preprocessed("", "-dM"), re.M)
    spelled = preprocessed("".join(f'"{name}" = {name}\n' for name in macros), "-P")
    renamed = dict(re.findall(r'^"(cu\w+)" = (cu\w+)$', spelled, re.M))
    base = {real: name for name, real in renamed.items()}
    return {base.get(real, real): real for real in sorted(declared)}


def cudnn_names(provider: Path) -> set[str]:
    """The functions of cuDNN that the provider looks up by name."""
    with open(provider, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", data)}


def kind_of(name: str) -> str:
    """The body of a function in stubs.h."""
    if name.startswith("cuda") or re.match(r"cu[A-Z]", name):
        return "NOT_SUPPORTED"
    if re.search(r"Create(_v\d)?$", name) or re.match(r"(cudnn|cublasLt)Create", name):
        return "CREATE"
    if "Destroy" in name:
        return "DESTROY"
    if re.match(r"cublas[A-Z]", name) and not re.match(r"cublas(Lt|Get|Set)", name):
        return "WORK"
    if re.match(r"cudnn(?!Set|Get|Find)\w*(Execute|Forward|AddTensor|ReduceTensor)", name):
        return "WORK"
    return "NOTHING"


def compile_source(out: Path, source: Path, headers: Path) -> Path:
    compiled = out / f"{source.stem}.o"
    # Of the libraries that NVIDIA's stand for, only the functions that theirs have are seen.
    seen = () if source.stem in CORE_SOURCES else ("-fvisibility=hidden",)
    run(
        "g++",
        "-c",
        "-std=c++17",
        "-O1",
        "-fPIC",
        *seen,
        f"-I{headers}",
        f"-I{SOURCES}",
        f"-I{out}",
        "-o",
        compiled,
        source,
    )
    return compiled


def link(out: Path, soname: str, objects: list[Path], options: tuple[str, ...]) -> None:
    """Link a library whose symbols have its name as their version, as NVIDIA's have."""
    script = out / f"{soname}.map"
    script.write_text(f"{soname} {{ global: *; }};\n")
    # cuDNN and the driver are asked for names without a version.
    versioned = [f"-Wl,--version-script,{script}"] if re.search("cudart|cublas", soname) else []
    shared = ["-shared", f"-Wl,-soname,{soname}", "-Wl,-rpath,$ORIGIN", *versioned]
    run("g++", *shared, "-o", out / soname, *objects, *options)


def run(*command: str | Path, given: str = "") -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, input=given)
    except FileNotFoundError:
        sys.exit(f"no {command[0]}: install gcc, g++ and binutils")
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: make.py DIR [INCLUDE]")
    make(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "/usr/local/cuda/include"))
