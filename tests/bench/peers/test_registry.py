"""Which peers there are, and what is said of one that is not there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lira_bench.peers import PEERS, registry
from lira_bench.peers.compare import python_variable
from lira_bench.peers.registry import install, missing, peers_named, version
from lira_engine.errors import LiraError
from lira_engine.system.extras import extras

DOCS = Path(__file__).parents[3] / "docs" / "peers.md"


def test_names_in_the_order_asked_each_once() -> None:
    assert [peer.name for peer in peers_named(["openvino", "genai", "openvino"])] == ["openvino", "genai"]


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(LiraError, match=r"'onnx'.*torch, optimum, genai, llama-cpp, openvino"):
        peers_named(["genai", "onnx"])


def test_missing_packages_version_and_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = PEERS["llama-cpp"]
    monkeypatch.setattr("lira_engine.system.extras.installed", {"gguf": "0.17"}.get)
    monkeypatch.setattr(registry, "installed", {"llama-cpp-python": "0.3.30"}.get)
    assert missing(peer) == ["llama-cpp-python"]
    assert version(peer) == "0.3.30"
    assert version(PEERS["genai"]) == "?"
    assert install(peer) == "pip install 'lira-edge[peer-llama-cpp]'"


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_complete(name: str) -> None:
    """Its extra brings its package; its module has what a worker calls, read without importing the peer."""
    peer = PEERS[name]
    assert peer.package in extras()[peer.extra]
    source = Path(registry.__file__).with_name(f"{peer.module}.py").read_text()
    defined = {
        node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert {"Model"} | ({"convert"} if not peer.answers else set()) <= defined


@pytest.mark.parametrize("name", PEERS)
def test_the_page_tells_how_to_install_it(name: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert f"`{name}`" in page
    assert install(PEERS[name]) in page


def test_variable_that_names_an_interpreter() -> None:
    assert python_variable("llama-cpp") == "LIRA_PEER_PYTHON_LLAMA_CPP"
