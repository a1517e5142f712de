"""The prompts that a checkpoint was trained with: its own config's, or its language model family's chat."""

from __future__ import annotations

from dataclasses import replace

from lira_engine.bundle import schema
from lira_engine.bundle.manifest import PromptSpec, TaskSpec

from .config import LiraConfig
from .families import INTERNLM2, QWEN2

# Qwen2's ChatML: a line break after each turn, its default system text (upstream's template qwen_chat).
_QWEN2_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_QWEN2_USER = "<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
# What upstream's template internvl2_chat says (xtuner/utils/templates.py), and InternVL2 was trained with.
_SYSTEM = (
    "<|im_start|>system\n"
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。"
    "<|im_end|>"
)
_USER = "<|im_start|>user\n<image>\n{question}<|im_end|><|im_start|>assistant\n"
_END = "<|im_end|>"

# Upstream's referring script puts a BOS token in front of the system block, its other scripts do not. System
# block and prefix of an image are cached for every later question, so all tasks have to agree: no BOS.
UPSTREAM = PromptSpec(
    system=_SYSTEM,
    user=_USER,
    add_bos=False,
    tasks={
        "refseg": TaskSpec(
            "Please segment {expression}.", max_new_tokens=100, stop=(_END, "<image_id>"), lowercase=True
        ),
        "gcg": TaskSpec(
            "Can you provide a thorough description of the this image? Please output with interleaved "
            "segmentation masks for the corresponding phrases.",
            max_new_tokens=512,
            stop=(_END,),
        ),
        "vqa": TaskSpec("{expression}", max_new_tokens=100, stop=(_END,)),
        "caption": TaskSpec("Please describe this picture", max_new_tokens=512, stop=(_END,)),
    },
)

CHAT = {INTERNLM2.name: UPSTREAM, QWEN2.name: replace(UPSTREAM, system=_QWEN2_SYSTEM, user=_QWEN2_USER)}


def prompts_of(config: LiraConfig) -> PromptSpec:
    """Raises LiraError where the checkpoint's own prompts have missing, unknown or wrong keys."""
    if config.prompts is None:
        return CHAT[config.llm.family]
    return schema.read(PromptSpec, dict(config.prompts), "config.json.prompts")
