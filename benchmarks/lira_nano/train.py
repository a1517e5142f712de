"""Train lira-nano on two CPU cores: first the vision stage, then the joint stage.

The vision stage trains both encoders on segments and words; the joint stage trains the whole model, with all
questions about an image packed into one sequence (:mod:`.sequences`). Scenes are rendered on the fly. A run
that was stopped goes on from its last snapshot.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import typer
from torch import Tensor, nn

from lira_bench.reproduce import function_line
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write
from lira_engine.system.terminal import plain_console
from lira_export.checkpoint_writer import write_checkpoint

from .architecture import class_embeddings, config_dict, tokenizers
from .joint import JointLoss
from .scenes import TRAINING_SEED
from .trainee import Trainee
from .vision import VisionLoss

OBJECTIVES: dict[str, type[VisionLoss] | type[JointLoss]] = {"vision": VisionLoss, "joint": JointLoss}


@dataclass(frozen=True)
class Stage:
    """A training stage: steps, images per step over all processes, peak learning rates and their schedule."""

    name: str
    steps: int
    images: int
    lr: float
    vision_lr: float
    first_scene: int
    warm_up: int = 50
    cool_down: float = 0.4  # share of the steps, along a cosine to 2 %

    def factor(self, step: int) -> float:
        start = self.steps * (1 - self.cool_down)
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        if step < start:
            return 1.0
        return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - start) / (self.steps - start)))


STAGES = {
    "vision": Stage("vision", 1000, 16, 1e-3, 1e-3, first_scene=0),
    "joint": Stage("joint", 3400, 8, 1e-3, 3e-4, first_scene=1_000_000),
}


def train(stage: Stage, folder: Path, processes: int = 2) -> None:
    """Run a stage to its end. Snapshots and the log go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, args=(stage, folder, processes, port), nprocs=processes)


def _worker(rank: int, stage: Stage, folder: Path, world: int, port: int) -> None:
    # One thread per process: OpenMP threads of two processes on the same cores slow each other down.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    trainee = Trainee()
    loss_of = OBJECTIVES[stage.name](trainee, TRAINING_SEED)
    optimizer = torch.optim.AdamW(list(_groups(trainee, stage)), betas=(0.9, 0.98), weight_decay=0.02)
    average = [p.detach().clone() for p in trainee.parameters()]
    first = _resume(folder, stage, trainee, optimizer, average)
    per_rank = stage.images // world
    log = _Log(stage, folder)
    for step in range(first, stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * stage.factor(step)
        start = stage.first_scene + step * stage.images + rank * per_rank
        losses = loss_of(range(start, start + per_rank), np.random.default_rng((TRAINING_SEED, start, 7)))
        optimizer.zero_grad(set_to_none=False)
        losses["loss"].backward()
        _reduce_gradients(trainee, world)
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 20))
        for mean, p in zip(average, trainee.parameters(), strict=True):
            mean.lerp_(p.detach(), 1 - decay)
        if rank == 0:
            log.add(step + 1, losses)
            if (step + 1) % 100 == 0 or step + 1 == stage.steps:
                _snapshot(folder, stage, step + 1, trainee, optimizer, average)
    dist.destroy_process_group()


class _Log:
    """Writes a line of means every 25 steps."""

    every = 25

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.path = stage, folder / f"{stage.name}.log"
        self.totals: dict[str, float] = {}
        self.began = time.monotonic()

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(value.detach())
        if step % self.every:
            return
        pace = (time.monotonic() - self.began) / self.every
        parts = " ".join(f"{name} {total / self.every:.3f}" for name, total in self.totals.items())
        with self.path.open("a") as file:
            file.write(f"{self.stage.name} {step}/{self.stage.steps} {pace:.2f} s/step {parts}\n")
        self.totals, self.began = {}, time.monotonic()


def _groups(trainee: Trainee, stage: Stage) -> Iterator[dict[str, object]]:
    pixel = list(trainee.lira.pixel_encoder.parameters())
    seen = {id(p) for p in pixel}
    yield {"params": pixel, "peak": stage.vision_lr}
    yield {"params": [p for p in trainee.parameters() if id(p) not in seen], "peak": stage.lr}


def _reduce_gradients(trainee: Trainee, world: int) -> None:
    parameters = [p for p in trainee.parameters() if p.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= world
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = grad.view_as(p)


def _snapshot(
    folder: Path,
    stage: Stage,
    step: int,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
) -> None:
    state = {
        "stage": stage.name,
        "step": step,
        "model": trainee.state_dict(),
        "average": average,
        "optimizer": optimizer.state_dict(),
    }
    with atomic_write(folder / f"{stage.name}.pt") as file:
        torch.save(state, file)


def _resume(
    folder: Path, stage: Stage, trainee: Trainee, optimizer: torch.optim.Optimizer, average: list[Tensor]
) -> int:
    """Load this stage's snapshot, or start from the vision stage's averaged weights."""
    own, before = folder / f"{stage.name}.pt", folder / "vision.pt"
    if own.is_file():
        state = torch.load(own, weights_only=True)
        trainee.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for mean, saved in zip(average, state["average"], strict=True):
            mean.copy_(saved)
        return int(state["step"])
    if stage.name == "joint" and before.is_file():
        state = torch.load(before, weights_only=True)
        with torch.no_grad():
            for mean, p, saved in zip(average, trainee.parameters(), state["average"], strict=True):
                p.copy_(saved)
                mean.copy_(saved)
    return 0


def export_weights(folder: Path, checkpoint: Path, overwrite: bool = False) -> None:
    """Write the averaged weights of the joint stage's last snapshot as the five checkpoint files."""
    state = torch.load(folder / "joint.pt", weights_only=True)
    trainee = Trainee()
    with torch.no_grad():
        for p, saved in zip(trainee.parameters(), state["average"], strict=True):
            p.copy_(saved)
    base, _ = tokenizers()
    write_checkpoint(
        trainee.lira, class_embeddings(), config_dict(), base, checkpoint, "nano", overwrite=overwrite
    )


def command(
    work: Annotated[Path, typer.Option(help="folder for snapshots and logs; a run that was stopped goes on")],
    output: Annotated[Path, typer.Option("--output", "-o", help="checkpoint folder to write")],
    vision_steps: Annotated[int, typer.Option(help="steps of the vision stage")] = STAGES["vision"].steps,
    joint_steps: Annotated[int, typer.Option(help="steps of the joint stage")] = STAGES["joint"].steps,
    processes: Annotated[int, typer.Option(help="training processes, one core each")] = 2,
    overwrite: Annotated[bool, typer.Option(help="replace an existing checkpoint folder")] = False,
) -> None:
    """Train lira-nano from nothing, about 75 minutes on two cores; logs: WORK/vision.log, WORK/joint.log."""
    console = plain_console()
    for name, steps in (("vision", vision_steps), ("joint", joint_steps)):
        stage = replace(STAGES[name], steps=steps)
        if stage.images % processes:
            raise LiraError(
                f"{processes} processes do not divide the {stage.images} images of a step; use 1, 2, 4 or 8"
            )
        console.print(f"{name}: {steps} steps, log in {work / name}.log", soft_wrap=True)
        train(stage, work, processes)
    export_weights(work, output, overwrite)
    options = {"work": work, "output": output, "vision_steps": vision_steps, "joint_steps": joint_steps}
    options |= {"processes": processes, "overwrite": overwrite}
    console.print(function_line("python -m lira_nano train", command, **options), soft_wrap=True)
