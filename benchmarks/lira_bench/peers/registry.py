"""The five peers by name: title, extra, and whether they are installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.extras import install_line, installed, missing_packages

OWN = "lira-edge"


@dataclass(frozen=True)
class Peer:
    """A peer. `package`: the one whose version is reported. `module`: its module in lira_bench.peers."""

    name: str
    title: str
    extra: str
    package: str
    module: str

    @property
    def answers(self) -> bool:
        """Return whether whole answers about an image are compared, or the language model alone."""
        return self.name == "torch"

    def load(self) -> Any:
        """Import its module, which imports the peer's packages only when its functions are called."""
        return import_module(f"lira_bench.peers.{self.module}")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "the torch reference, run as upstream runs it", "export", "torch", "torch_reference"),
        Peer("optimum", "optimum-onnx, ORTModelForCausalLM", "peer-optimum", "optimum-onnx", "optimum"),
        Peer("genai", "onnxruntime-genai", "peer-genai", "onnxruntime-genai", "genai"),
        Peer("llama-cpp", "llama.cpp, llama-cpp-python", "peer-llama-cpp", "llama-cpp-python", "llama_cpp"),
        Peer("openvino", "OpenVINO GenAI", "peer-openvino", "openvino-genai", "openvino"),
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
