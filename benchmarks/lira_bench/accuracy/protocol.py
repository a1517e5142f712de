"""The rules for asking questions and judging answers: ours, or those of the authors' scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from lira_engine.errors import LiraError
from lira_runtime.preprocess import check_tiles
from lira_runtime.prompts import Ilvc, check_ilvc

NAMES = ("strict", "authors")


@dataclass(frozen=True)
class Protocol:
    """The rules of one task. The defaults are ours ("strict"); None means the bundle's value.

    Attributes:
        ilvc: what `<image_id>` does.
        bos: put a BOS token in front of the prompt.
        min_tiles, max_tiles: number of tiles of an image, the thumbnail not counted.
        questions: asked instead of the task's own, in turn, until a region was encoded.
        instruction: appended to questions that expect a short answer.
        max_new_tokens: most tokens of an answer.
        min_new_tokens: fewest tokens before an end token; the turn's end may always come.
        beams: of a beam search; 1 is greedy.
        ends_at_turn_only: only the turn's end ends an answer, no other end token.
        masks_of_regions: judge the masks taken at `<image_id>`; else those of the phrases.
        without_mask: take an answer without a mask for one with an empty mask; else its pixels are in neither
            sum of cIoU and its IoU is 0, also if there is no target.
        overlaps: pixels in several polygons of a true mask belong to it; else they do not.
        answers: how texts are compared: "lenient" (our reading), "exact" (equal but for case and outer
            blanks; with ten annotators TextVQA's rules; in POPE a no between two blanks), or "gqa", which
            shortens them first.
        ranks_words: rank words at the `[SEG]`; else leave out expressions with words.
        of_many: (N, M): of more than N entries, evaluate the first M.
    """

    name: str
    ilvc: Ilvc = "auto"
    bos: bool = False
    min_tiles: int | None = None
    max_tiles: int | None = None
    questions: tuple[str, ...] = ()
    instruction: str | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    beams: int = 1
    ends_at_turn_only: bool = False
    masks_of_regions: bool = False
    without_mask: bool = True
    overlaps: bool = True
    answers: Literal["lenient", "exact", "gqa"] = "lenient"
    ranks_words: bool = True
    of_many: tuple[int, int] | None = None

    @property
    def tiles(self) -> dict[str, int]:
        """Return the options for `Lira.look`."""
        given = {"max_tiles": self.max_tiles, "min_tiles": self.min_tiles}
        return {name: count for name, count in given.items() if count is not None}

    def changed(self, ilvc: str | None, instruction: str | None, max_tiles: int | None) -> Protocol:
        """Return the rules with the user's changes; None changes nothing. Raises LiraError as `look` does."""
        rules = self
        if ilvc is not None:
            rules = replace(rules, ilvc=check_ilvc(ilvc))
        if instruction is not None:
            rules = replace(rules, instruction=instruction)
        if max_tiles is not None:
            check_tiles("max_tiles", max_tiles)
            least = None if rules.min_tiles is None else min(rules.min_tiles, max_tiles)
            rules = replace(rules, min_tiles=least, max_tiles=max_tiles)
        return rules

    def as_dict(self) -> dict[str, Any]:
        """Return all rules by name for a report, which has `ilvc` and `instruction` elsewhere."""
        rules: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if key not in ("ilvc", "instruction"):
                rules[key] = list(value) if isinstance(value, tuple) else value
        return rules


STRICT = Protocol("strict")

# Questions of upstream's omg_llava/tools/gcg_lira.py, in its order.
_GCG_QUESTIONS = (
    "Can you provide a thorough description of the this image? Please output with interleaved segmentation "
    "masks for the corresponding phrases.",
    "Could you please give me a detailed description of the image? Please respond with interleaved "
    "segmentation masks for the corresponding parts of the answer.",
    "Please describe in detail the contents of the image. Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer.",
    "Could you give a comprehensive explanation of what can be found within this picture? Please output with "
    "interleaved segmentation masks for the corresponding phrases.",
    "Could you give me an elaborate explanation of this picture? Please respond with interleaved "
    "segmentation masks for the corresponding phrases.",
    "Could you provide me with a detailed analysis of this photo? Please output with interleaved "
    "segmentation masks for the corresponding parts of the answer.",
)
_ONE_WORD = "Answer the question using a single word or phrase."
_UNANSWERABLE = "When the provided information is insufficient, respond with 'unanswerable'. "

# internvl/eval/vqa/evaluate_vqa.py with the options of internvl/eval_lira.sh
_VQA = Protocol(
    "authors",
    ilvc="plain",
    min_tiles=4,
    max_tiles=6,
    instruction=_ONE_WORD,
    max_new_tokens=10,
    min_new_tokens=1,
    answers="exact",
    of_many=(20_000, 4_000),
)
BENCHMARKS = {
    "vqav2": _VQA,
    "okvqa": _VQA,
    "textvqa": _VQA,
    "vizwiz": replace(_VQA, instruction=_UNANSWERABLE + _ONE_WORD),
    "ai2d": replace(_VQA, instruction=None),
    "gqa": replace(_VQA, answers="gqa"),
}
"""The authors' rules for the data sets that task vqa reads."""

_AUTHORS = {
    # omg_llava/tools/refcoco_lira.py, whose --max_patch is not read
    "refseg": Protocol(
        "authors",
        ilvc="plain",
        bos=True,
        min_tiles=4,
        max_tiles=12,
        max_new_tokens=100,
        without_mask=False,
        overlaps=False,
    ),
    # omg_llava/tools/gcg_lira.py and evaluate_gcg.py
    "gcg": Protocol(
        "authors",
        ilvc="on",
        min_tiles=1,
        max_tiles=6,
        questions=_GCG_QUESTIONS,
        max_new_tokens=100,
        ends_at_turn_only=True,
        masks_of_regions=True,
    ),
    "vqa": _VQA,
    # evaluate_vqa.py on refcoco_attri
    "attreval": replace(_VQA, instruction=None, ranks_words=False),
    # internvl/eval/pope/evaluate_pope.py, --max-num 8 in eval_lira.sh; its question file has the instruction
    "pope": Protocol(
        "authors",
        ilvc="plain",
        min_tiles=4,
        max_tiles=8,
        instruction=f"\n{_ONE_WORD}",
        max_new_tokens=100,
        min_new_tokens=1,
        beams=5,
        answers="exact",
    ),
    # internvl/eval/chair/evaluate_chair.py
    "chair": Protocol(
        "authors",
        ilvc="on",
        min_tiles=1,
        max_tiles=6,
        questions=("Provide an in-depth description of this image.",),
        max_new_tokens=512,
        ends_at_turn_only=True,
    ),
}


def protocol_for(name: str, task: str, benchmark: str | None = None) -> Protocol:
    """Return the rules of a task. `benchmark` chooses those of task vqa under "authors" (default: vqav2).

    Raises LiraError for unknown names, and for a benchmark of another task or protocol.
    """
    if name not in NAMES:
        raise LiraError(f"--protocol is {name!r}, expected {' or '.join(NAMES)}")
    if benchmark is not None:
        if name != "authors" or task != "vqa":
            raise LiraError("--benchmark is for --protocol authors with --task vqa, leave it out")
        if benchmark not in BENCHMARKS:
            raise LiraError(f"--benchmark is {benchmark!r}, expected one of {', '.join(BENCHMARKS)}")
        return BENCHMARKS[benchmark]
    return STRICT if name == "strict" else _AUTHORS[task]
