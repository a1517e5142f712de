"""Stand-ins for engines and tokenizer in plain NumPy, to test every rule of the loop in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_engine.bundle.manifest import (
    Manifest,
    PixelSpec,
    PreprocessingSpec,
    PromptSpec,
    RegionSpec,
    StageSpec,
    TaskSpec,
    TensorSpec,
    TileSpec,
    TokenSpec,
)
from lira_engine.errors import ContextFull

WIDTH = 8  # C
TILE_TOKENS = 3  # N
MASK_SIDE = 4

# As SentencePiece spells it: "▁" is a space, <0x..> a byte.
VOCABULARY = [
    *("<unk>", "<s>", "<|im_start|>", "<|im_end|>", "[SEG]", "<p>", "</p>", "<image_id>"),
    *("▁a", "▁red", "▁blue", "▁ball", "▁is", "▁left", "▁of", "▁it", "▁segment", "▁the", "▁light", "▁", "\n"),
    *("<0xE2>", "<0x82>", "<0xAC>", "user", "assistant", "system", ".", ","),
    *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?{}<>_|",
]
ID = {piece: token_id for token_id, piece in enumerate(VOCABULARY)}
SEG, IMAGE_ID, P, P_END, EOS = (ID[name] for name in ("[SEG]", "<image_id>", "<p>", "</p>", "<|im_end|>"))


class FakeTokenizer:
    """Longest match on VOCABULARY; decodes bytes and the first space of a text like SentencePiece."""

    unknown_id = ID["<unk>"]

    def encode(self, text: str) -> list[int]:
        text = (
            text.replace(" ", "▁") if text.startswith(("<", "[", " ", "\n")) else "▁" + text.replace(" ", "▁")
        )
        ids = []
        while text:
            piece = max((p for p in VOCABULARY if text.startswith(p)), key=len, default="<unk>")
            ids.append(ID[piece])
            text = text[len(piece) if piece != "<unk>" else 1 :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        out = b""
        text = ""

        def flush() -> str:
            try:
                return out.decode()
            except UnicodeDecodeError:
                return "\ufffd" * len(out)

        for token_id in ids:
            piece = VOCABULARY[token_id]
            if piece.startswith("<0x"):
                out += bytes([int(piece[3:5], 16)])
                continue
            text += flush() + piece.replace("▁", " ")
            out = b""
        text += flush()
        return text[1:] if text.startswith(" ") else text

    def id_of(self, token: str) -> int | None:
        return ID.get(token)


class FakeCache:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[np.ndarray] = []

    @property
    def length(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    def truncate(self, length: int) -> None:
        assert length <= len(self.rows)
        del self.rows[length:]


class FakeLlm:
    """Chooses a scripted token after each pass; hidden states and logits hold the number of the pass.

    The next pass writes its results where those of the last one are: who keeps some must copy them.
    """

    def __init__(
        self, script: Iterable[int] = (), capacity: int = 1000, vocabulary: int = len(VOCABULARY)
    ) -> None:
        self.script = list(script)
        self.capacity = capacity
        self.vocabulary = vocabulary
        self.passes: list[np.ndarray] = []  # embeddings of each pass
        self.answer_passes = 0
        self._logits = np.zeros((1, vocabulary), dtype=np.float32)
        self._hidden = np.zeros((1, WIDTH), dtype=np.float32)

    def new_cache(self) -> FakeCache:
        return FakeCache(self.capacity)

    def forward(self, embeds: np.ndarray, cache: FakeCache, logit_positions: Sequence[int] = (-1,)) -> Any:
        assert embeds.ndim == 2 and embeds.dtype == np.float32
        assert tuple(logit_positions) == (() if is_prefix(embeds) else (-1,))
        if cache.length + len(embeds) > cache.capacity:
            raise ContextFull("full")
        cache.rows += list(embeds)
        self.passes.append(embeds)
        logits, hidden = self._logits, self._hidden
        logits[:] = hidden[:] = 0
        if not is_prefix(embeds):
            step = self.answer_passes
            self.answer_passes += 1
            logits[0, self.script[step] if step < len(self.script) else EOS] = 10
            logits[0, ID["▁red"]] += 1 + step / 10
            hidden[:] = step
        return SimpleNamespace(logits=logits, hidden=hidden)


def embed(token_ids: Sequence[int]) -> np.ndarray:
    """Return embeddings with the token's id in every channel."""
    return np.repeat(np.asarray(token_ids, dtype=np.float32)[:, None], WIDTH, axis=1)


def is_prefix(embeds: np.ndarray) -> bool:
    """Whether a pass ends with the visual prefix, whose rows are negative: then it is not of the answer."""
    return bool(embeds[-1, 0] < 0)


class FakeStage:
    """A stage as a function of its feeds, with the calls recorded. A pass runs when its result is read."""

    def __init__(self, function: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
        self._function = function
        self.calls: list[dict[str, np.ndarray]] = []

    def start(self, feeds: Mapping[str, np.ndarray]) -> SimpleNamespace:
        made: dict[str, np.ndarray] = {}

        def numpy(name: str) -> np.ndarray:
            if not made:
                made.update(self.run(feeds))
            return made[name]

        return SimpleNamespace(outputs=made, numpy=numpy)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls.append(dict(feeds))
        return self._function(feeds)


def _semantic(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tiles = feeds["pixel_values"]
    assert tiles.dtype == np.float32 and tiles.shape[1:] == (3, 8, 8)
    return {"features": np.full((len(tiles), TILE_TOKENS, WIDTH), -1, dtype=np.float32)}


def _pixel(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    assert feeds["pixel_values"].shape == (1, 3, 16, 16)
    return {
        "pixel_features": np.zeros((1, 2, 6), dtype=np.float32),
        "queries": np.zeros((1, 4, 5), dtype=np.float32),
        "query_valid": np.array([[True, False, True, False]]),
        "mask_features": np.full((1, 2, MASK_SIDE, MASK_SIDE), 7, dtype=np.float32),
    }


def _sefe(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    queries = -10 - np.arange(4, dtype=np.float32)
    return {
        "pixel_tokens": np.full((1, 2, WIDTH), -3, dtype=np.float32),
        "query_tokens": np.repeat(queries[None, :, None], WIDTH, axis=2),
    }


def _mask(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mask the left columns of the image, as many as the number of the pass: none in pass 0."""
    assert feeds["mask_features"][0, 0, 0, 0] == 7
    columns = np.arange(MASK_SIDE) < feeds["hidden_states"][0, 0]
    logits = np.where(columns, 4.0, -4.0).astype(np.float32)
    return {"mask_logits": np.repeat(logits[None, None], MASK_SIDE, axis=1)}


def fake_engines(script: Iterable[int] = (), capacity: int = 1000) -> SimpleNamespace:
    return SimpleNamespace(
        semantic_encoder=FakeStage(_semantic),
        pixel_encoder=FakeStage(_pixel),
        sefe=FakeStage(_sefe),
        pixel_decoder=FakeStage(_mask),
        remark="",
        draft_costs=(),
        tiles_at_once=1,
        llm=FakeLlm(script, capacity),
        check_unchanged=lambda: None,
        close=lambda: None,
    )


def fake_manifest() -> Manifest:
    anything = TensorSpec("float32", (1,))
    decoder = StageSpec(
        "d", "d", {"hidden_states": anything, "mask_features": anything}, {"mask_logits": anything}
    )
    ends = ("<|im_end|>",)
    return Manifest(
        name="fake",
        lira_edge_version="0",
        provenance={},
        model=SimpleNamespace(tokens_per_tile=TILE_TOKENS),  # type: ignore[arg-type]
        preprocessing=PreprocessingSpec(
            TileSpec(8, (0.5,) * 3, (0.5,) * 3, 1, 2, True),
            PixelSpec(16, (0.5,) * 3, (0.5,) * 3, (122, 116, 104)),
            RegionSpec(0.3),
        ),
        tokens=TokenSpec(ID["<s>"], (EOS,), SEG, IMAGE_ID, P, P_END, (ID["▁"], P)),
        prompts=PromptSpec(
            system="<|im_start|>system\na<|im_end|>",
            user="<|im_start|>user\n<image>\n{question}<|im_end|><|im_start|>assistant\n",
            add_bos=False,
            tasks={
                "refseg": TaskSpec(
                    "segment {expression}.", 100, (*ends, "<image_id>"), True, "the {expression}."
                ),
                "gcg": TaskSpec("the image?", 100, ends),
                "vqa": TaskSpec("{expression}", 20, ends),
            },
        ),
        stages={"pixel_decoder": decoder},
        files={},
    )


@pytest.fixture
def fakes() -> SimpleNamespace:
    """All names above: test modules cannot import each other."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("__")})
