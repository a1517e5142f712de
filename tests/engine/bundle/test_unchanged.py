"""A file that changes under an open bundle is noticed, one that is only touched or replaced is not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lira_engine import Bundle, BundleChanged
from lira_engine.build import build
from lira_engine.bundle import bundle as bundle_module
from lira_engine.bundle import unchanged
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.unchanged import HeldFiles, states
from lira_engine.open import open_engines

CONTENT = b"weights " * 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.data"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def held(file: Path) -> Iterator[HeldFiles]:
    files = HeldFiles({file: sha256_of(file)}, states([file]))
    files.check()
    yield files
    files.close()


def in_place(path: Path, content: bytes) -> None:
    """Write as `cp -p` does: the file stays the same one, its size and times too."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate(len(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def overwrite(path: Path) -> None:
    in_place(path, CONTENT[:-1] + b"x")


def cut(path: Path) -> None:
    in_place(path, CONTENT[:4096])


def lengthen(path: Path) -> None:
    in_place(path, CONTENT + b"x")


@pytest.mark.parametrize("change", [overwrite, cut, lengthen])
def test_a_change_in_place_is_told_until_it_is_undone(
    file: Path, held: HeldFiles, change: Callable[[Path], None]
) -> None:
    change(file)
    for _ in range(2):
        with pytest.raises(BundleChanged, match=r"a\.data was changed in place .*: open the bundle again"):
            held.check()
    in_place(file, CONTENT)
    held.check()


@pytest.mark.parametrize("change", [overwrite, cut])
def test_a_change_of_a_file_that_was_moved_is_told(
    file: Path, held: HeldFiles, change: Callable[[Path], None]
) -> None:
    moved = file.rename(file.with_name("moved"))
    held.check()
    change(moved)
    with pytest.raises(BundleChanged, match=r"a\.data was changed in place"):
        held.check()


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def link(path: Path) -> None:
    os.link(path, path.with_name("link"))


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"others")
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [touch, link, replace, Path.unlink, lambda path: in_place(path, CONTENT)])
def test_what_leaves_the_content_is_right_and_hashed_once(
    file: Path, held: HeldFiles, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    hash_again = unchanged.sha256_of_file
    monkeypatch.setattr(unchanged, "sha256_of_file", lambda file: hashed.append(1) or hash_again(file))
    held.check()
    assert hashed == []
    change(file)
    for _ in range(3):
        held.check()
    assert hashed == [1]


@pytest.mark.parametrize("change", [overwrite, replace])
def test_a_change_during_the_opening_is_told(file: Path, change: Callable[[Path], None]) -> None:
    digest, verified = sha256_of(file), states([file])
    change(file)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(BundleChanged, match="changed or replaced while the bundle was being opened"):
        HeldFiles({file: digest}, verified)
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_a_closed_one_holds_nothing(file: Path, held: HeldFiles) -> None:
    held.close()
    overwrite(file)
    held.check()


def test_the_error_reaches_another_process(file: Path, held: HeldFiles) -> None:
    overwrite(file)
    with pytest.raises(BundleChanged) as caught:
        held.check()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_small_arrays_do_not_change_with_their_files(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(bundle_path)
    before = bundle.embeddings.copy()
    assert not isinstance(bundle.embeddings, np.memmap) and bundle.mapped() == {}
    assert not isinstance(bundle.separators, np.memmap)
    monkeypatch.setattr(bundle_module, "READ_AT_ONCE", 0)
    mapped = Bundle.open(bundle_path)
    assert isinstance(mapped.embeddings, np.memmap) and isinstance(mapped.separators, np.memmap)
    file = bundle_path / "embeddings.npy"
    assert mapped.mapped() == {file: sha256_of(file)}
    file.write_bytes(bytes(file.stat().st_size))
    assert np.array_equal(bundle.embeddings, before)
    assert not np.array_equal(mapped.embeddings, before)  # and so it must be watched


def test_portable_engines_hold_external_data_and_the_mapped_table(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "READ_AT_ONCE", 0)
    data = bundle_path / "llm.onnx.data"
    for path in (data, bundle_path / "embeddings.npy"):
        content = path.read_bytes()
        with open_engines(bundle_path, "portable", threads=1) as engines:
            engines.check_unchanged()
            in_place(path, content[:-1] + bytes([content[-1] ^ 1]))
            with pytest.raises(BundleChanged, match=f"{path.name} was changed in place"):
                engines.check_unchanged()
        in_place(path, content)


def test_built_engines_hold_what_they_read_beside_their_graphs(bundle_path: Path) -> None:
    build(bundle_path, "cpu", "int8", threads=1)
    folder = bundle_path / "engines" / "cpu-int8"
    with open_engines(bundle_path, "cpu", "int8", threads=1) as engines:
        data = {path for path in folder.iterdir() if path.suffix == ".data"}
        assert data >= {folder / "llm.onnx.data", folder / "llm.prefill.0.data"}
        for path in data:
            content = path.read_bytes()
            in_place(path, content + b"x")
            with pytest.raises(BundleChanged, match=f"{path.name} was changed in place"):
                engines.check_unchanged()
            in_place(path, content)
        engines.check_unchanged()
