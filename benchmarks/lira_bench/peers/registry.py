"""The peers by name: what is measured, in which variant, their extra, and whether they are installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from lira_engine.errors import LiraError
from lira_engine.system.extras import install_line, installed, missing_packages

OWN = "lira-edge"

Measures = Literal["language model", "answers", "encoders"]


@dataclass(frozen=True)
class Peer:
    """A peer.

    Attributes:
        package: the one whose version is reported. module: its module in lira_bench.peers.
        measures: the language model in prefill and decode, whole answers about an image, or the encoders of
            tiles and of the image.
        variant: which form of its weights; "" where its module has one.
    """

    name: str
    title: str
    extra: str
    package: str
    module: str
    measures: Measures = "language model"
    variant: str = ""

    @property
    def python_variable(self) -> str:
        """Return the environment variable with an interpreter that has its packages, one for all variants:
        such as LIRA_PEER_PYTHON_LLAMA_CPP."""
        environment = "torch" if self.extra == "export" else self.extra.removeprefix("peer-")
        return "LIRA_PEER_PYTHON_" + environment.upper().replace("-", "_")

    def load(self) -> Any:
        """Import its module, which imports the peer's packages only when its functions are called."""
        return import_module(f"lira_bench.peers.{self.module}")


_TORCH = "the torch reference, run as upstream runs it"
_LLAMA_CPP = ("llama.cpp, llama-cpp-python", "peer-llama-cpp", "llama-cpp-python", "llama_cpp")
_ENCODERS = ("OpenVINO, the encoders", "peer-openvino", "openvino-genai", "openvino_encoders")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", _TORCH, "export", "torch", "torch_reference", "answers"),
        Peer("optimum", "optimum-onnx, ORTModelForCausalLM", "peer-optimum", "optimum-onnx", "optimum"),
        Peer("genai", "onnxruntime-genai", "peer-genai", "onnxruntime-genai", "genai"),
        Peer("llama-cpp", *_LLAMA_CPP, variant="Q4_K_M"),
        Peer("llama-cpp-q5", *_LLAMA_CPP, variant="Q5_K_M"),
        Peer("openvino", "OpenVINO GenAI", "peer-openvino", "openvino-genai", "openvino"),
        Peer("openvino-bf16", *_ENCODERS, measures="encoders", variant="bf16"),
        Peer("openvino-int8", *_ENCODERS, measures="encoders", variant="int8"),
    )
}


def peers_named(names: Sequence[str]) -> list[Peer]:
    """Return the peers in the order given. Raises LiraError for an unknown name, with the choices."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise LiraError(f"no peer is called {unknown[0]!r}: expected some of {', '.join(PEERS)}")
    return [PEERS[name] for name in dict.fromkeys(names)]


def missing(peer: Peer) -> list[str]:
    """Return the packages of the peer that this interpreter lacks."""
    return missing_packages(peer.extra)


def install(peer: Peer) -> str:
    """Return the line that installs the peer."""
    return install_line(peer.extra)


def version(peer: Peer) -> str:
    """Return the version of the installed package, or "?"."""
    return installed(peer.package) or "?"
