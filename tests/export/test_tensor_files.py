"""Tensor files that are damaged or foreign, or hold values and dtypes that no weight may have."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lira_engine.errors import LiraError
from lira_export.checkpoint import Checkpoint
from lira_export.pth_files import open_pth
from lira_export.tensor_files import INDEX, open_base, open_safetensors

TABLE = "llm.base_model.model.model.tok_embeddings.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def error(act: Callable[[], Any]) -> str:
    with pytest.raises(LiraError) as caught:
        act()
    message = " ".join(str(caught.value).splitlines())
    assert len(message) < 300 + message.count("/tmp") * 80  # the paths of tests are long
    return message


def lira_file(folder: Path) -> Path:
    return next(folder.glob("LIRA*.pth"))


def rewrite(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    tensors = torch.load(path, weights_only=True)
    edit(tensors)
    torch.save(tensors, path)


# --- values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["lira", "head", "clip", "base", "classes"])
def test_a_value_that_is_not_finite_is_refused_when_it_is_read(
    copied_checkpoint: Path, part: str, value: float
) -> None:
    names = {"head": "omg_seg*", "clip": "open_clip*", "classes": "*OVDataset*", "lira": "LIRA*"}
    if part == "base":
        path = next(copied_checkpoint.glob("internvl2-*/model.safetensors"))
        tensors = load_file(path)
        name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        tensors[name][1, 2] = value
        save_file(tensors, path)
        place = "[1, 2]"
    else:
        path = next(copied_checkpoint.glob(names[part]))
        loaded = torch.load(path, weights_only=True)
        tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {path.stem: loaded}
        name = {
            "lira": "llm.base_model.model.model.layers.1.attention.wo.lora_B.default.weight",
            "head": "panoptic_head.level_embed.weight",
            "clip": "visual.trunk.stem.0.weight",
            "classes": path.stem,
        }[part]
        flat = tensors[name].view(-1)
        flat[5], flat[7] = value, value
        torch.save(loaded, path)
        place = str([int(i) for i in torch.unravel_index(torch.tensor(5), tensors[name].shape)])

    def read_all() -> None:
        checkpoint = Checkpoint.open(copied_checkpoint)
        for parameter in checkpoint:
            checkpoint.tensor(parameter)

    message = error(read_all)
    count = 1 if part == "base" else 2
    assert message.startswith(f"{path}: {name} has {count} of ")
    assert f"the first one ({value}) at {place}" in message


def test_the_first_value_that_is_not_finite_is_located_in_a_large_tensor(tmp_path: Path) -> None:
    tensor = torch.zeros(3, 5000)
    tensor[2, 7] = float("nan")
    torch.save({"a": tensor}, tmp_path / "a.pth")
    assert "1 of 15000 values that are not finite, the first one (nan) at [2, 7]" in error(
        lambda: open_pth(tmp_path / "a.pth").read("a")
    )


def test_fp64_is_read_as_fp32_and_noted(copied_checkpoint: Path) -> None:
    expected = Checkpoint.open(copied_checkpoint).tensor("llm.tok_embeddings.weight")
    rewrite(lira_file(copied_checkpoint), lambda t: t.update({k: v.double() for k, v in t.items()}))
    checkpoint = Checkpoint.open(copied_checkpoint)
    assert checkpoint.tensor("llm.tok_embeddings.weight").equal(expected)
    assert re.fullmatch(r"LIRA-tiny\.pth: \d+ tensors are float64, read as float32", checkpoint.notes[0])
    rewrite(lira_file(copied_checkpoint), lambda t: t[TABLE].fill_(1e300))
    assert "not finite" in error(
        lambda: Checkpoint.open(copied_checkpoint).tensor("llm.tok_embeddings.weight")
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: (t * 100).to(torch.int8), "int8"),
        (lambda t: t > 0, "bool"),
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: t.to_sparse(), "sparse float32"),
        (lambda t: t.to("meta"), "meta float32"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
)
def test_weights_that_are_no_floats_are_refused(
    copied_checkpoint: Path, change: Callable[[torch.Tensor], torch.Tensor], found: str
) -> None:
    rewrite(lira_file(copied_checkpoint), lambda t: t.update({TABLE: change(t[TABLE])}))
    message = error(lambda: Checkpoint.open(copied_checkpoint))
    assert f"{TABLE} in LIRA-tiny.pth is {found}, expected one of float16, bfloat16, float32" in message


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_tensor_is_refused_in_one_line(copied_checkpoint: Path) -> None:
    code = torch.quantize_per_tensor(torch.ones(12, 24), 0.01, 0, torch.qint8)
    rewrite(lira_file(copied_checkpoint), lambda tensors: tensors.update({TABLE: code}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's would be further lines
        message = error(lambda: Checkpoint.open(copied_checkpoint))
    assert f"{TABLE} in LIRA-tiny.pth is quantised qint8" in message


def test_integers_in_safetensors_are_refused(copied_checkpoint: Path) -> None:
    path = next(copied_checkpoint.glob("internvl2-*/model.safetensors"))
    tensors = load_file(path)
    for name in list(tensors):
        if "feed_forward" in name:
            tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, path)
    message = error(lambda: Checkpoint.open(copied_checkpoint))
    assert "feed_forward.w1.weight in model.safetensors is int8" in message and "(and 5 more)" in message


def test_unused_buffers_may_be_integers(copied_checkpoint: Path) -> None:
    path = next(copied_checkpoint.glob("internvl2-*/model.safetensors"))
    buffers = {
        "vision_model.embeddings.position_ids": torch.arange(5),
        "language_model.model.layers.0.attention.rotary_emb.inv_freq": torch.full((2,), float("nan")),
    }
    save_file(load_file(path) | buffers, path)
    Checkpoint.open(copied_checkpoint)


@pytest.mark.parametrize("shape", [(0,), (0, 24)])
def test_tensors_without_values_are_refused(copied_checkpoint: Path, shape: tuple[int, ...]) -> None:
    def empty(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if "lora" not in name:
                tensors[name] = torch.zeros(shape)

    rewrite(lira_file(copied_checkpoint), empty)
    message = error(lambda: Checkpoint.open(copied_checkpoint))
    assert "without any value" in message and "convert_deepspeed2pth.py" in message


def test_adapters_without_values_are_refused(copied_checkpoint: Path) -> None:
    def empty(tensors: dict[str, Any], shape: Callable[[torch.Tensor], torch.Tensor]) -> None:
        tensors.update({name: shape(tensor) for name, tensor in tensors.items() if "lora" in name})

    path = lira_file(copied_checkpoint)
    whole = path.read_bytes()
    rewrite(path, lambda tensors: empty(tensors, lambda _: torch.zeros(0)))
    assert "without any value" in error(lambda: Checkpoint.open(copied_checkpoint))
    path.write_bytes(whole)
    rewrite(path, lambda tensors: empty(tensors, lambda t: t[:0] if t.shape[0] == 2 else t[:, :0]))
    assert "the adapters have rank 0" in error(lambda: Checkpoint.open(copied_checkpoint))


# --- files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty (0 bytes)"),
        (bytes(2000), "nothing but zeros"),
        (POINTER.encode(), "a git-lfs pointer, not the file itself: run `git lfs pull`"),
        (b"<!DOCTYPE html><html>Access denied</html>", "a web page"),
        (b"\xef\xbb\xbf\n <HTML>", "a web page"),
        (b'{"error": "gone"}', "JSON text"),
        (b"\x1f\x8b" + bytes(50), "a gzip archive"),
        (b"GGUF" + bytes(50), "a GGUF file"),
        (b"hello", "not a file that torch.save wrote"),
        (b"PK\3\4" + bytes(500), "cut short, its table of contents is missing"),
    ],
)
def test_a_foreign_file_in_place_of_a_pth_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "LIRA-2B.pth"
    path.write_bytes(content)
    assert says in error(lambda: open_pth(path))


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "is empty"), (POINTER.encode(), "git-lfs"), (b"<html>", "a web page")]
)
@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "config.json", "tokenizer.json"])
def test_a_foreign_file_in_place_of_the_base_models_is_named(
    copied_checkpoint: Path, content: bytes, says: str, name: str
) -> None:
    path = next(copied_checkpoint.glob("internvl2-*")) / name
    path.write_bytes(content)
    (copied_checkpoint / "config.json").unlink()  # so that the base model's own is read
    from lira_export.config import LiraConfig
    from lira_export.tokenizer import read_tokenizer

    def read() -> None:
        read_tokenizer(path.parent)
        open_base(path.parent)
        LiraConfig.from_files(None, path.parent, "tiny")

    assert says in error(read)


def test_a_safetensors_file_under_another_name_is_named(copied_checkpoint: Path) -> None:
    path = lira_file(copied_checkpoint)
    tensors = {name: tensor.contiguous() for name, tensor in torch.load(path, weights_only=True).items()}
    save_file(tensors, path)
    assert "is a safetensors file under another name" in error(lambda: Checkpoint.open(copied_checkpoint))


def test_a_header_that_is_longer_than_the_file_makes_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes((30).to_bytes(8, "little") + b'{"a": {"dtype": "F3')
    assert "is not a file that torch.save wrote" in error(lambda: open_pth(path))


def test_archives_of_other_kinds_are_named(tmp_path: Path) -> None:
    script = tmp_path / "script.pth"
    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/constants.pkl", b"")
    assert "a TorchScript archive" in error(lambda: open_pth(script))
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("LIRA-2B.pth", b"inside")
    assert "a zip archive that torch.save did not write: unpack it" in error(lambda: open_pth(other))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_a_flipped_bit_is_found_by_checksum(tmp_path: Path) -> None:
    path = tmp_path / "LIRA-2B.pth"
    torch.save({"a": torch.arange(4096.0), "b": torch.ones(4096)}, path)
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    flip(path, record.header_offset + 200 + 4096)
    assert "LIRA-2B/data/0 does not have the checksum" in error(lambda: open_pth(path))


def test_missing_checksums_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "LIRA-2B.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(4096.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert open_pth(path).read("a").equal(torch.arange(4096.0))


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    whole, packed = tmp_path / "whole.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.zeros(4096)}, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for info in archive.infolist():
            other.writestr(info.filename, archive.read(info))
    assert "is compressed" in error(lambda: open_pth(packed))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_stripped(copied_checkpoint: Path, prefix: str) -> None:
    expected = Checkpoint.open(copied_checkpoint).tensor("projector.query_proj.weight")
    path = lira_file(copied_checkpoint)
    tensors = torch.load(path, weights_only=True)
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in tensors.items()}}, path)
    assert Checkpoint.open(copied_checkpoint).tensor("projector.query_proj.weight").equal(expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors, "meta": {"lr": np.float64(1e-4)}, "optimizer": {}},
        lambda tensors: {"model": tensors, "iter": 7},
        lambda tensors: {"model_state_dict": tensors},
        lambda tensors: {name: tensor.numpy() for name, tensor in tensors.items()},
    ],
    ids=["mmengine", "model", "model_state_dict", "arrays"],
)
def test_the_command_that_converts_a_trainers_checkpoint_works(
    copied_checkpoint: Path, wrap: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lira_file(copied_checkpoint)
    torch.save(wrap(torch.load(path, weights_only=True)), path)
    monkeypatch.chdir(copied_checkpoint)
    message = error(lambda: Checkpoint.open(Path(".")))
    command = shlex.split(message[message.index("python -c") :])
    subprocess.run([sys.executable, *command[1:]], check=True)
    Checkpoint.open(copied_checkpoint)


def test_a_long_path_is_not_repeated_in_a_command(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 20) / "LIRA-2B.pth"
    path.parent.mkdir()
    torch.save({"model": {"a": torch.zeros(2)}}, path)
    assert error(lambda: open_pth(path)).endswith(" FILE")


def test_a_broken_link_and_a_folder_are_named(copied_checkpoint: Path) -> None:
    path = lira_file(copied_checkpoint)
    path.unlink()
    path.symlink_to("gone")
    assert f"{path} is a link to gone, which does not exist" in error(
        lambda: Checkpoint.open(copied_checkpoint)
    )
    path.unlink()
    path.mkdir()
    message = error(lambda: Checkpoint.open(copied_checkpoint))
    assert f"{path} is a folder, expected a file: a DeepSpeed checkpoint" in message


# --- two files


def halves(base: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Write the base model's tensors as two shards without an index."""
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    first, second = ({name: tensors[name] for name in part} for part in (names[::2], names[1::2]))
    save_file(first, base / "a.safetensors")
    save_file(second, base / "b.safetensors")
    return first, second


def write_index(base: Path, weight_map: dict[str, str]) -> None:
    (base / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_the_index_decides_tensor_by_tensor(copied_checkpoint: Path) -> None:
    base = next(copied_checkpoint.glob("internvl2-*"))
    first, second = halves(base)
    name = next(iter(first))
    stale = {**second, name: torch.zeros_like(first[name])}
    save_file(stale, base / "b.safetensors")
    message = error(lambda: open_base(base))
    assert f"a.safetensors and b.safetensors both hold {name}" in message
    write_index(base, dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors"))
    assert open_base(base).read(name).equal(first[name].float())


def test_an_index_of_other_files_is_refused(copied_checkpoint: Path) -> None:
    base = next(copied_checkpoint.glob("internvl2-*"))
    first, second = halves(base)
    name = next(iter(first))
    write_index(base, {name: "b.safetensors"})
    assert f"says that b.safetensors holds {name}, which it does not" in error(lambda: open_base(base))
    write_index(base, dict.fromkeys(first, "a.safetensors"))
    message = error(lambda: Checkpoint.open(copied_checkpoint))
    assert "its index does not name b.safetensors, which holds" in message
    read = [name for name in second if "tok_embeddings" not in name and "model.output" not in name]
    assert f"(and {len(read) - 1} more that are missing)" in message


def test_an_unrelated_file_beside_an_index_is_not_read(copied_checkpoint: Path) -> None:
    base = next(copied_checkpoint.glob("internvl2-*"))
    first, second = halves(base)
    write_index(base, dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors"))
    (base / "other.safetensors").write_bytes(b"not one at all")
    Checkpoint.open(copied_checkpoint)


def test_truncated_safetensors_are_refused(copied_checkpoint: Path) -> None:
    path = next(copied_checkpoint.glob("internvl2-*/model.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a complete safetensors file" in error(lambda: open_safetensors([path]))


class Gigabytes:
    """Torch's tensors-only reader would make a bytearray of any size."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return bytearray, (3 << 30,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_small_file_does_not_ask_for_gigabytes(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pth"

    def saved(content: object) -> Path:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path

    tracemalloc.start()
    try:
        assert "holds more than tensors" in error(lambda: open_pth(saved({"w": Gigabytes()})))
        view = torch.zeros(1).expand(1 << 28)
        assert "needs 1073741824 bytes, and 4 in the file" in error(lambda: open_pth(saved({"w": view})))
        assert "needs 8 bytes, and 4 in" in error(lambda: open_pth(saved({"w": torch.zeros(1).expand(2)})))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    whole = torch.arange(6.0).reshape(2, 3)
    found = open_pth(saved({"turned": whole.T, "part": whole[:, :1], "bytearray of": torch.ones(1)}))
    assert torch.equal(found.read("turned"), whole.T) and torch.equal(found.read("part"), whole[:, :1])


@pytest.mark.parametrize("name", ["data.pkl", "DATA.PKL"])
def test_a_second_pickle_in_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    """Torch reads the last one, whatever its case: 3 GiB from a file of a kilobyte."""
    path, evil = tmp_path / "a.pth", tmp_path / "evil.pth"
    torch.save({"w": torch.ones(1)}, path)
    torch.save({"w": Gigabytes()}, evil)
    with zipfile.ZipFile(evil) as other, zipfile.ZipFile(path, "a") as archive:
        pickled = other.read("evil/data.pkl")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the name, which is there
            archive.writestr(f"a/{name}", pickled)
    assert "a record is there twice" in error(lambda: open_pth(path))


def test_a_storage_with_more_values_than_the_old_format_file_has_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"seed": 1 << 60, "a": torch.ones(77)}, path, _use_new_zipfile_serialization=False)
    assert open_pth(path).shapes == {"a": (77,)}  # other large numbers are no sizes
    data = path.read_bytes()
    assert data.count(b"KM") >= 1
    large = data.replace(b"KM", b"J\xff\xff\xff\x7f", 1)  # BININT1 77 -> BININT
    device = b"X\x03\0\0\0cpu"
    assert large.count(device) == 1
    for content in (large, large.replace(device, b"K\x01")):  # another number before it hides nothing
        path.write_bytes(content)
        assert f"{path}: one of its storages has 2,147,483,647 values" in error(lambda: open_pth(path))


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02X\x05\x00",  # struct.error
        b"\x80\x02}q",  # IndexError
        b"\x80\x02}K\x01Q.",  # AssertionError
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01\x85R.",  # TypeError
    ],
)
def test_what_torch_cannot_unpickle_is_refused_whatever_it_raises(tmp_path: Path, pickled: bytes) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
    assert error(lambda: open_pth(path)).startswith(f"{path} cannot be read (")


@pytest.mark.parametrize("name", ["x" * 300, "\ud800", "a\0b"])
def test_a_shard_with_an_impossible_name_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LiraError, match=r"shard .{1,70} is missing \(1 expected\)"):
        open_base(tmp_path)
