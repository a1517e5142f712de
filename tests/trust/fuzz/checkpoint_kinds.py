"""What a checkpoint brings: tensor files, their index, configurations, and tokenizers of each form."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from fuzz.bundle_kinds import tokenizers_of_each_model
from fuzz.kind import Kind, folder_with

from lira_export.config import LiraConfig
from lira_export.prompts import prompts_of
from lira_export.pth_files import open_pth
from lira_export.tensor_files import FLOATS, INDEX, TensorFile, open_base, open_safetensors
from lira_export.tokenizer import add_lira_tokens, read_tokenizer

_NANO = Path(__file__).parents[3] / "checkpoints" / "lira-nano"
_TEXT = "Segment the star <p> \U0001f31f </p> [SEG]"


def config_json(data: bytes) -> None:
    """A checkpoint's own configuration."""
    with folder_with(config_json=data) as folder:
        prompts_of(LiraConfig.from_files(folder / "config.json", folder, "fuzzed"))


def base_config(data: bytes) -> None:
    """The configuration of the base model."""
    with folder_with(config_json=data) as folder:
        prompts_of(LiraConfig.from_files(None, folder, "fuzzed"))


def safetensors(data: bytes) -> None:
    """A file of tensors."""
    with folder_with(x_safetensors=data) as folder:
        _read_all(open_safetensors([folder / "x.safetensors"]))


def index_json(data: bytes) -> None:
    """The index of a folder with two files of tensors."""
    a, b = _saved("a"), _saved("b")
    with folder_with(a_safetensors=a, b_safetensors=b) as folder:
        (folder / INDEX).write_bytes(data)
        _read_all(open_base(folder))


def pth(data: bytes) -> None:
    """What torch.save wrote."""
    with folder_with(x_pth=data) as folder:
        _read_all(open_pth(folder / "x.pth"))


def pth_pickle(data: bytes) -> None:
    """The pickle in a whole archive of torch.save."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in _records().items():
            archive.writestr(name, data if name.endswith("/data.pkl") else content)
    pth(packed.getvalue())


def base_tokenizer(data: bytes) -> None:
    """tokenizer.json, as export reads it."""
    with folder_with(tokenizer_json=data) as folder:
        _use(folder)


def sentencepiece(data: bytes) -> None:
    """tokenizer.model, beside a good configuration."""
    with folder_with(tokenizer_model=data, tokenizer_config_json=_tokenizer_config()) as folder:
        _use(folder)


def tokenizer_config(data: bytes) -> None:
    """The tokens that are added to a SentencePiece model, and to a byte-level BPE."""
    with folder_with(tokenizer_model=_pieces(), tokenizer_config_json=data) as folder:
        _use(folder)


def bpe_tokens(data: bytes) -> None:
    """The tokens that are added to vocab.json and merges.txt."""
    with folder_with(vocab_json=_vocabulary(), merges_txt=b"a b\n", tokenizer_config_json=data) as folder:
        _use(folder)


def bpe_vocabulary(data: bytes) -> None:
    """vocab.json, beside good merges."""
    with folder_with(vocab_json=data, merges_txt=b"#version: 0.2\na b\n") as folder:
        _use(folder)


def bpe_merges(data: bytes) -> None:
    """merges.txt, beside a good vocabulary."""
    with folder_with(vocab_json=_vocabulary(), merges_txt=data) as folder:
        _use(folder)


def _use(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    add_lira_tokens(tokenizer)
    tokenizer.decode(tokenizer.encode(_TEXT, add_special_tokens=False).ids)


def _read_all(tensors: TensorFile) -> None:
    """Read what a checkpoint would: tensors of shapes that it expects, and floats."""
    for name, dtype in tensors.dtypes.items():
        if dtype in FLOATS:
            tensors.read(name)


def _saved(*names: str) -> bytes:
    from safetensors.numpy import save

    return save(
        {name: np.arange(6, dtype=np.float32).reshape(2, 3) for name in names}, metadata={"format": "pt"}
    )


@cache
def _pth() -> tuple[bytes, ...]:
    import torch

    found = []
    weights = {"module.a": torch.arange(6.0).reshape(2, 3).T, "module.b": torch.ones(2, dtype=torch.bfloat16)}
    wide = {
        "a": torch.zeros(1).expand(3),
        "b": torch.eye(2).to_sparse(),
        "c": torch.nn.Parameter(torch.ones(1)),
    }
    for saved, zipped in (
        (weights, True),
        ({"state_dict": weights}, False),
        (wide, True),
        (torch.ones(2, 2), True),
    ):
        packed = io.BytesIO()
        torch.save(saved, packed, _use_new_zipfile_serialization=zipped)
        found.append(packed.getvalue())
    return tuple(found)


@cache
def _records() -> dict[str, bytes]:
    """The records of an archive by name."""
    with zipfile.ZipFile(io.BytesIO(_pth()[0])) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    return {f"archive/data/{number}": bytes(64) for number in range(5)} | found


def _pickles() -> list[bytes]:
    found = []
    for data in _pth():
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found += [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    return found


def _index() -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()


def _vocabulary() -> bytes:
    return json.dumps({token: i for i, token in enumerate(["a", "b", "ab", "S", "\u0120"])}).encode()


def _tokenizer_config() -> bytes:
    tokens = {"3": {"content": "<|im_end|>", "special": True}, "7": {"content": "<img>", "lstrip": False}}
    return json.dumps({"added_tokens_decoder": tokens}).encode()


def _bpe_config() -> bytes:
    return json.dumps({"added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": True}}}).encode()


def _pieces() -> bytes:
    """A SentencePiece model of a few pieces (sentencepiece_model.proto)."""
    pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("a", -1.0, 1),
        ("[U]", 0.0, 4),
        ("b", -2.0, 1),
        ("ab", -3.0, 1),
    ]
    pieces.append(("<0x0A>", 0.0, 6))
    made = b"".join(
        _message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
        for text, score, kind in pieces
    )
    return made + _message(2, _number(3, 2) + _number(35, 1) + _number(40, 0)) + _message(3, _number(3, 0))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low = b""
    while value > 0x7F:
        low, value = low + bytes([value & 0x7F | 0x80]), value >> 7
    return low + bytes([value])


KINDS = (
    Kind("config_json", config_json, lambda: [(_NANO / "config.json").read_bytes()], "json"),
    Kind(
        "base_config", base_config, lambda: [(_NANO / "internvl2-nano" / "config.json").read_bytes()], "json"
    ),
    Kind("safetensors", safetensors, lambda: [_saved("a", "b")], "tensors"),
    Kind("index_json", index_json, lambda: [_index()], "json"),
    Kind("pth", pth, lambda: list(_pth())),
    Kind("pth_pickle", pth_pickle, _pickles),
    Kind("base_tokenizer", base_tokenizer, tokenizers_of_each_model, "json"),
    Kind("sentencepiece", sentencepiece, lambda: [_pieces()]),
    Kind("tokenizer_config", tokenizer_config, lambda: [_tokenizer_config()], "json"),
    Kind("bpe_tokens", bpe_tokens, lambda: [_bpe_config()], "json"),
    Kind("bpe_vocabulary", bpe_vocabulary, lambda: [_vocabulary()], "json"),
    Kind("bpe_merges", bpe_merges, lambda: [b"#version: 0.2\na b\n"]),
)
