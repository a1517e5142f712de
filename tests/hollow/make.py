"""Makes a hollow CUDA, to see what host code does where there is no GPU.

    python tests/hollow/make.py DIR [INCLUDE]
    LD_LIBRARY_PATH=DIR PATH=DIR:$PATH lira-edge doctor

Device memory, copies, streams, events and graphs are real; kernels, cuBLAS and cuDNN do nothing, so outputs are
zeros. Nothing that is computed or timed on it means anything. It needs Linux, onnxruntime-gpu in this Python, gcc and
g++, and CUDA's headers in INCLUDE: a toolkit's (/usr/local/cuda/include), or those of the wheels nvidia-cuda-runtime
and nvidia-cuda-crt. `install.sh` brings all of it.

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
SMI = """#!/bin/sh
# What `nvidia-smi --query-gpu=FIELDS` says of the hollow card; other fields are unknown, as to an older nvidia-smi.
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
    lacking = [name for name in ("cuda.h", "crt/host_defines.h") if not (headers / name).is_file()]
    if lacking:
        sys.exit(f"{headers} lacks {' and '.join(lacking)}: pip install nvidia-cuda-runtime nvidia-cuda-crt")
    out.mkdir(parents=True, exist_ok=True)
    provider = provider_library()
    needed = run("readelf", "-d", provider)
    majors = {name: f"{name}.so.{major}" for name, major in re.findall(r"\[(lib\w+)\.so\.(\d+)\]", needed)}
    undefined = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "-u", provider).splitlines()}

    def wanted(pattern: str) -> set[str]:
        return {name for name in undefined if re.match(pattern, name)}

    symbols = driver_symbols(headers)
    (out / "symbols.h").write_text("".join(f'{{"{name}", "{real}"}},\n' for name, real in symbols.items()))
    core = ("log", "memory", "contexts", "streams", "card")
    link(out, CORE, [compile_source(out, SOURCES / f"{name}.cpp", headers) for name in core], ())
    for source, soname, names in (
        ("runtime", majors["libcudart"], wanted(r"_*cuda")),
        ("driver", "libcuda.so.1", set(symbols.values())),
        ("cublas", majors["libcublas"], wanted("cublas(?!Lt)")),
        ("cublasLt", majors["libcublasLt"], wanted("cublasLt")),
        ("cudnn", "libcudnn.so.9", cudnn_names(provider)),
    ):
        written = compile_source(out, SOURCES / f"{source}.cpp", headers)
        defined = {line.split()[-1] for line in run("nm", "--defined-only", written).splitlines()}
        stubs = out / f"{source}-stubs.cpp"
        lines = (f"{kind_of(name)}({name})" for name in sorted(names - defined))
        stubs.write_text('#include "stubs.h"\n' + "\n".join(lines) + "\n")
        link(out, soname, [written, compile_source(out, stubs, headers)], ("-L", str(out), "-lhollow"))
    for soname in (majors["libcurand"],):  # loaded, not asked for anything
        empty = out / "empty.cpp"
        empty.write_text("")
        link(out, soname, [compile_source(out, empty, headers)], ())
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
    """The functions of cuda.h: what the library calls each (cuMemFree is cuMemFree_v2)."""
    include = f"-I{headers}"
    given = "#include <cuda.h>\n"
    macros = run("g++", "-E", "-dM", "-x", "c++", include, "-", given=given)
    renamed = dict(re.findall(r"^#define (cu[A-Z]\w+) (cu[A-Z]\w+)$", macros, re.M))
    declared = re.findall(r"\b(cu[A-Z]\w+)\s*\(", run("g++", "-E", "-P", "-x", "c++", include, "-", given=given))
    functions = dict.fromkeys(sorted(declared))
    base = {real: name for name, real in renamed.items()}
    return {base.get(real, real): real for real in functions}


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
    if re.search(r"Execute|Forward|AddTensor|ReduceTensor$", name) and not re.match("cudnn(Set|Get|Find)", name):
        return "WORK"
    return "NOTHING"


def compile_source(out: Path, source: Path, headers: Path) -> Path:
    compiled = out / f"{source.stem}.o"
    options = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden" if source.parent == out else "-fPIC")
    run("g++", "-c", *options, f"-I{headers}", f"-I{SOURCES}", f"-I{out}", "-o", compiled, source)
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
