"""Devices and their figures: dense operations of the GPU alone, each with its source.

Vendors quote Jetson boards with structured sparsity and with the DLA. LIRA's weights are not sparse and never
run on the DLA, so both are taken out here. A figure that no document has is derived, and the row says how.
"""

from __future__ import annotations

from lira_bench.plan.device import THIS_MACHINE, Device, Kind
from lira_engine.errors import LiraError

_SUPER_POST = (
    "NVIDIA, 'NVIDIA Jetson Orin Nano Developer Kit Gets a \"Super\" Boost', table of both modes, "
    "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/"
)
_NX_SHEET = (
    "NVIDIA, Jetson Orin NX Series data sheet, DS-10712-001; "
    "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-orin/"
)
_SUPER_MODE_POST = (
    "NVIDIA, 'NVIDIA JetPack 6.2 Brings Super Mode to NVIDIA Jetson Orin Nano and Jetson Orin NX Modules', "
    "https://developer.nvidia.com/blog/nvidia-jetpack-6-2-brings-super-mode-to-nvidia-jetson-orin-nano-and-"
    "jetson-orin-nx-modules/"
)
_AGX_SHEET = (
    "NVIDIA, Jetson AGX Orin Series data sheet, DS-10662-001 v1.8, page 7; "
    "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-orin/"
)
_THOR_POST = (
    "NVIDIA, 'Introducing NVIDIA Jetson Thor, the Ultimate Platform for Physical AI', "
    "https://developer.nvidia.com/blog/introducing-nvidia-jetson-thor-the-ultimate-platform-for-physical-ai/"
)
_FP32 = "fp32 = CUDA cores x clock x 2"

DEVICES = {
    device.name: device
    for device in (
        Device(
            "orin-nano",
            "Jetson Orin Nano 8GB",
            "orin",
            memory_gib=8,
            bandwidth=68,
            fp32=1.28,
            fp16=10,
            int8=20,
            watts=(7, 15),
            source=_SUPER_POST,
            derived=f"{_FP32} (1024 at 625 MHz)",
        ),
        Device(
            "orin-nano-super",
            "Jetson Orin Nano Super 8GB",
            "orin",
            memory_gib=8,
            bandwidth=102,
            fp32=2.09,
            fp16=17,
            int8=33,
            watts=(7, 15, 25),
            source=_SUPER_POST,
            derived=f"{_FP32} (1024 at 1020 MHz)",
        ),
        Device(
            "orin-nx-8",
            "Jetson Orin NX 8GB",
            "orin",
            memory_gib=8,
            bandwidth=102.4,
            fp32=1.57,
            fp16=12.5,
            int8=25,
            watts=(10, 15, 20),
            source=_NX_SHEET,
            derived="int8 = (70 sparse TOPS - 20 of the DLA) / 2; fp16 = int8 / 2; "
            f"{_FP32} (1024 at 765 MHz)",
        ),
        Device(
            "orin-nx-16",
            "Jetson Orin NX 16GB",
            "orin",
            memory_gib=16,
            bandwidth=102.4,
            fp32=1.88,
            fp16=15,
            int8=30,
            watts=(10, 15, 25),
            source=_NX_SHEET,
            derived="int8 = (100 sparse TOPS - 40 of the DLAs) / 2; fp16 = int8 / 2; "
            f"{_FP32} (1024 at 918 MHz)",
        ),
        Device(
            "orin-nx-16-super",
            "Jetson Orin NX 16GB, super mode",
            "orin",
            memory_gib=16,
            bandwidth=102.4,
            fp32=2.4,
            fp16=19.2,
            int8=38.5,
            watts=(10, 15, 25, 40),
            source=_SUPER_MODE_POST,
            derived="int8 = (157 sparse TOPS - 80 of the DLAs) / 2; fp16 = int8 / 2; "
            f"{_FP32} (1024 at 1173 MHz)",
        ),
        Device(
            "agx-orin-32",
            "Jetson AGX Orin 32GB",
            "orin",
            memory_gib=32,
            bandwidth=204.8,
            fp32=3.37,
            fp16=27,
            int8=54,
            watts=(15, 30, 40),
            source=_AGX_SHEET,
            derived=f"int8 = 108 sparse TOPS of the GPU / 2; fp16 = int8 / 2; {_FP32} (1792 at 939 MHz)",
        ),
        Device(
            "agx-orin-64",
            "Jetson AGX Orin 64GB",
            "orin",
            memory_gib=64,
            bandwidth=204.8,
            fp32=5.3,
            fp16=42.5,
            int8=85,
            watts=(15, 30, 50, 60),
            source=_AGX_SHEET,
            derived=f"int8 = 170 sparse TOPS of the GPU / 2; fp16 = int8 / 2; {_FP32} (2048 at 1.3 GHz)",
        ),
        Device(
            "thor",
            "Jetson AGX Thor (T5000)",
            "thor",
            memory_gib=128,
            bandwidth=273,
            fp32=8.0,
            fp16=258,
            int8=517,
            watts=(40, 130),
            source=_THOR_POST,
            derived="int8 = 1035 sparse TOPS / 2, fp16 = 2070 sparse FP4 TFLOPS / 8 (half for dense, half "
            f"for each doubling of the bits); {_FP32} (2560 at 1.57 GHz)",
        ),
        Device(
            "rtx-4060",
            "GeForce RTX 4060",
            "rtx",
            memory_gib=8,
            bandwidth=272,
            fp32=15.1,
            fp16=30.2,
            int8=121,
            watts=(115,),
            source="table of the card (third party), "
            "https://hmc-tech.com/gpu/nvidia-geforce-rtx-4060-vs-nvidia-geforce-rtx-4060",
            derived="bandwidth = 128 bits x 17 Gbit/s / 8",
        ),
        Device(
            "rtx-4090",
            "GeForce RTX 4090",
            "rtx",
            memory_gib=24,
            bandwidth=1008,
            fp32=82.6,
            fp16=165.2,
            int8=660.6,
            watts=(450,),
            source="NVIDIA, Ada GPU Architecture white paper V2.01, table of the RTX 4090; as listed at "
            "https://waredb.com/processor/nvidia-geforce-rtx-4090",
            derived="none",
        ),
        Device(
            "rtx-5090",
            "GeForce RTX 5090",
            "rtx",
            memory_gib=32,
            bandwidth=1792,
            fp32=104.8,
            fp16=209.5,
            int8=838,
            watts=(575,),
            source="NVIDIA, RTX Blackwell GPU Architecture white paper; memory, bandwidth, power and sparse "
            "figures at https://www.spheron.network/blog/nvidia-rtx-5090-specs/ (third party)",
            derived="int8 = 3352 sparse FP4 TOPS / 4; fp16 = 838 sparse, accumulated in fp16 / 4; "
            f"{_FP32} (21760 at 2.41 GHz)",
        ),
    )
}


def names() -> list[str]:
    return [*DEVICES, THIS_MACHINE]


def kind_of(name: str) -> Kind:
    """Return the kind of a device. Raises LiraError with the choices for an unknown name."""
    if name != THIS_MACHINE and name not in DEVICES:
        raise LiraError(f"device {name!r} is not known; expected one of {', '.join(names())}")
    return "cpu" if name == THIS_MACHINE else DEVICES[name].kind


def find(name: str) -> Device:
    """Return a device; this machine is measured. Raises LiraError with the choices for an unknown name."""
    if name == THIS_MACHINE:
        from lira_bench.plan.this_machine import measured

        return measured()
    kind_of(name)
    return DEVICES[name]


def table() -> str:
    """Return the devices as a Markdown table."""
    lines = [
        "| name | device | GiB | GB/s | fp32 | fp16 | int8 | W | source | derived |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for one in DEVICES.values():
        figures = (one.memory_gib, one.bandwidth, one.fp32, one.fp16, one.int8)
        cells = [f"`{one.name}`", one.title, *(f"{figure:g}" for figure in figures)]
        lines.append("| " + " | ".join([*cells, one.power, one.source, one.derived]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
