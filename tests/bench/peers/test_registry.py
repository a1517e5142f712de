"""The table of peers, and a peer that is not installed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lira_bench.peers import PEERS, registry
from lira_bench.peers.registry import install, missing, peers_named, version
from lira_engine.errors import LiraError
from lira_engine.system.extras import extras

DOCS = Path(__file__).parents[3] / "docs" / "peers.md"


def test_peers_come_in_the_given_order_without_repeats() -> None:
    assert [peer.name for peer in peers_named(["openvino", "genai", "openvino"])] == ["openvino", "genai"]


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(
        LiraError, match=r"'onnx'.*torch, optimum, genai, llama-cpp, llama-cpp-q5, openvino, "
    ):
        peers_named(["genai", "onnx"])


def test_a_missing_peer_has_packages_and_an_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = PEERS["llama-cpp"]
    monkeypatch.setattr("lira_engine.system.extras.installed", {"gguf": "0.17"}.get)
    monkeypatch.setattr(registry, "installed", {"llama-cpp-python": "0.3.30"}.get)
    assert missing(peer) == ["llama-cpp-python"]
    assert version(peer) == "0.3.30"
    assert version(PEERS["genai"]) == "?"
    assert install(peer) == "pip install 'lira-edge[peer-llama-cpp]'"


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_has_an_extra_a_package_and_a_module(name: str) -> None:
    """The extra has the package; the module has the functions that a worker calls, by its syntax tree."""
    peer = PEERS[name]
    assert peer.package in extras()[peer.extra]
    source = Path(registry.__file__).with_name(f"{peer.module}.py").read_text()
    defined = {
        node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert {"Model"} | ({"convert"} if peer.measures != "answers" else set()) <= defined


@pytest.mark.parametrize("name", PEERS)
def test_the_docs_page_has_the_install_line(name: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert f"`{name}`" in page
    assert install(PEERS[name]) in page


def test_variants_share_an_interpreter() -> None:
    found = {name: peer.python_variable.removeprefix("LIRA_PEER_PYTHON_") for name, peer in PEERS.items()}
    assert found["llama-cpp"] == found["llama-cpp-q5"] == "LLAMA_CPP"
    assert found["openvino"] == found["openvino-bf16"] == found["openvino-int8"] == "OPENVINO"
    assert (found["torch"], found["optimum"], found["genai"]) == ("TORCH", "OPTIMUM", "GENAI")
