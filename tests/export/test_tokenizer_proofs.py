"""Token ids against SentencePiece and transformers, where the base models' tokenizers come from."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lira_engine.errors import LiraError
from lira_export.config import LIRA_TOKENS
from lira_export.tokenizer import add_lira_tokens, read_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")

UNUSED = [f"[UNUSED_TOKEN_{i}]" for i in range(4)]
# Texts that are hard for tokenizers.
LANGUAGES = (
    "The quick brown fox jumps over the lazy dog; it's 12,345.67 miles away, isn't it?",
    "Die Größe des Übels läßt sich schätzen: 7 Äpfel, ß und ẞ.",
    "中文的句子没有空格，标点也不同。请分割左边的杯子！",
    "日本語のひらがなとカタカナ、漢字も。",
    "Русский текст с ёлкой и числами 2024.",
    "العربية تُكتب من اليمين إلى اليسار ١٢٣",
    "हिन्दी में संयुक्त अक्षर क्ष त्र ज्ञ",
    "한국어 문장은 띄어쓰기가 있다.",
    "Ελληνικά με τόνους: ά έ ή ί ό ύ ώ",
    "עברית עם ניקוד: שָׁלוֹם",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Tiếng Việt có dấu: ắ ằ ẳ ẵ ặ",
    "def f(x):\n\treturn x ** 2  # comment\n",
)
SIGNS = (
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ 🏳️‍🌈 e\u0301 é \u200d\u200b",
    "\x00\x01\x07\x08\x0b\x0c\x1b\x7f\x85\xa0\u2028\u2029\ufeff\ufffd",
    "   leading", "trailing   ", "in   between", "\n\n\r\n\t ", " ", "", "a", "\u2581", " \u2581 ",
)  # fmt: skip


def corpus(count: int = 1500) -> list[str]:
    """Return the texts above, mixtures of their pieces, random code points, random bytes."""
    draw = random.Random(0)
    texts = [*LANGUAGES, *SIGNS]
    while len(texts) < count:
        kind = len(texts) % 3
        if kind == 0:
            sources = draw.choices([*LANGUAGES, *SIGNS], k=3)
            pieces = [s[(i := draw.randrange(len(s) + 1)) : i + draw.randrange(20)] for s in sources]
            texts.append(draw.choice(["", " ", "  ", "\n"]).join(pieces))
        elif kind == 1:
            points = (draw.choice([draw.randrange(0x250), draw.randrange(0x20, 0xD800)]) for _ in range(12))
            texts.append("".join(map(chr, points)))
        else:
            data = bytes(draw.randrange(256) for _ in range(24))
            texts.append(data.decode("utf-8", errors="replace"))
    return texts


@pytest.fixture(scope="module", params=[True, False], ids=["dummy prefix", "no dummy prefix"])
def internlm2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with InternLM2's options, trained here."""
    folder = tmp_path_factory.mktemp("internlm2")
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in LANGUAGES * 20 for line in text.splitlines()]),
        model_writer=trained,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=request.param,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        user_defined_symbols=UNUSED,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue()).vocab_size()
    own = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    added = {str(own.piece_to_id(UNUSED[0])): "<|im_end|>", str(own.piece_to_id(UNUSED[1])): "<|im_start|>"}
    added |= {str(size): "<img>", str(size + 1): "</img>"}
    entries = {id_: {"content": text, "special": True} for id_, text in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": entries}))
    return folder


def test_internlm2_ids_equal_sentencepieces(internlm2: Path) -> None:
    own = sentencepiece.SentencePieceProcessor(model_file=str(internlm2 / "tokenizer.model"))
    ours = read_tokenizer(internlm2)
    texts = [text for text in corpus() if "\x00" not in text]  # ends a text for the C++ library
    assert len(texts) > 1300
    differing = [t for t in texts if ours.encode(t, add_special_tokens=False).ids != own.encode(t)]
    assert differing == []
    pieces = {id_ for text in texts for id_ in own.encode(text)}
    assert sum(own.is_byte(id_) for id_ in pieces) > 150 and len(pieces) > 600


def test_internlm2_special_tokens_split_the_text(internlm2: Path) -> None:
    """Upstream's tokenizer gives SentencePiece the texts between special tokens, one by one."""
    own = sentencepiece.SentencePieceProcessor(model_file=str(internlm2 / "tokenizer.model"))
    ours = read_tokenizer(internlm2)
    ids = add_lira_tokens(ours)
    assert list(ids.values()) == [own.vocab_size() + 2 + i for i in range(len(LIRA_TOKENS))]
    found = ours.encode("<|im_start|>Die Größe[SEG]<image_id>", add_special_tokens=False).ids
    start = own.piece_to_id(UNUSED[1])
    assert found == [start, *own.encode("Die Größe"), ids["[SEG]"], ids["<image_id>"]]


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json, merges.txt and tokenizer_config.json as Qwen2's repositories have them, trained here."""
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LANGUAGES * 20, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.model.save(str(folder))
    size = tokenizer.get_vocab_size()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    entries = {str(size + i): {"content": name, **flags} for i, name in enumerate(names)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": entries, "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_qwen2_ids_equal_transformers(qwen2: Path) -> None:
    theirs = transformers.Qwen2Tokenizer.from_pretrained(str(qwen2))
    ours = read_tokenizer(qwen2)
    texts = corpus()
    texts += [f"<|im_start|>{a}<|im_end|>{b}" for a, b in zip(texts[:200], texts[200:400], strict=True)]
    found = {text: ours.encode(text, add_special_tokens=False).ids for text in texts}
    differing = [t for t, ids in found.items() if ids != theirs(t, add_special_tokens=False)["input_ids"]]
    assert len(texts) == 1700 and differing == []
    decoded = [
        t for t, ids in found.items() if ours.decode(ids, skip_special_tokens=False) != theirs.decode(ids)
    ]
    assert decoded == []


def test_liras_tokens_follow_qwen2s(qwen2: Path) -> None:
    theirs = transformers.Qwen2Tokenizer.from_pretrained(str(qwen2))
    ours = read_tokenizer(qwen2)
    theirs.add_tokens(list(LIRA_TOKENS), special_tokens=True)
    assert add_lira_tokens(ours) == {token: theirs.convert_tokens_to_ids(token) for token in LIRA_TOKENS}
    text = "It is [SEG]<image_id> <p> the left cup </p> [SEG]"
    assert (
        ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("merges.txt", "#version: 0.2\na b c\n", "expected two tokens"),
        ("merges.txt", "x", "expected two tokens"),
        ("merges.txt", "nowhere tobefound\n", "do not fit"),
        ("vocab.json", '{"a": 0}', "do not fit .no '.*' in the vocabulary"),
        ("vocab.json", "[]", "expected an object"),
        ("vocab.json", "{", "not JSON"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"9999": {"content": "<x>"}}}',
            "has the id 9999",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "cannot read the added tokens"),
    ],
)
def test_damaged_bpe_files_are_refused(
    qwen2: Path, tmp_path: Path, name: str, content: str, says: str
) -> None:
    for path in qwen2.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(LiraError, match=says):
        read_tokenizer(tmp_path)
