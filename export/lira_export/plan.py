"""What an export will do: all that is known before a weight is read, on the hub before it is downloaded.

`lira-edge export` makes this plan first and fails here if it has to. `--dry-run` ends with it. Torch is not
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lira_engine.command_line import command_text
from lira_engine.errors import LiraError
from lira_engine.inspect import duration_text, size_text
from lira_engine.system.atomic import check_target
from lira_engine.system.cache import Durations
from lira_engine.system.disk import check_disk, free_bytes
from lira_engine.system.machine import available_mib
from lira_engine.system.text import check_path

from .bundle_plan import BundlePlan, plan_bundle
from .config import LiraConfig
from .families import family_of
from .file_kinds import not_a_pth, refuse_foreign
from .hub import Announce, HubFile, check_room
from .parts import BASE, PARTS
from .sources import Sources, find_sources
from .tensor_files import open_base, open_safetensors, stored_dtype
from .tokenizer import add_lira_tokens, read_tokenizer

DURATIONS = Durations("export-times")


@dataclass(frozen=True)
class ExportRequest:
    """What the user asks for; the names are those of the options of `lira-edge export`.

    Attributes:
        checkpoint: folder, checkout, or hub source. output: the bundle's folder.
        given: part ("base", "head", "clip", "classes") -> file, folder or hub source.
        dtypes: stage, or "all", -> "fp16", "bf16" or "fp32".
    """

    checkpoint: str
    output: Path
    size: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    config: Path | None = None
    context_length: int | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    overwrite: bool = False

    def command(self, overwrite: bool, **others: object) -> str:
        """Return the command line that asks for the same, with options that are not of the plan."""
        return command_text(
            "export",
            self.checkpoint,
            output=self.output,
            size=self.size,
            **self.given,
            config=self.config,
            context_length=self.context_length,
            dtype=[dtype if stage == "all" else f"{stage}={dtype}" for stage, dtype in self.dtypes.items()],
            threads=self.threads,
            overwrite=overwrite,
            **others,
        )


@dataclass(frozen=True)
class ExportPlan:
    """What an export will do.

    Attributes:
        downloads: files on the hub that are not here yet. read: what was downloaded to make the plan.
        stored_dtype: of the base model's weights, None if they are not here.
        last_seconds: how long the same export took last time on this machine.
    """

    request: ExportRequest
    sources: Sources
    config: LiraConfig
    bundle: BundlePlan
    downloads: tuple[HubFile, ...]
    read: tuple[HubFile, ...]
    stored_dtype: str | None
    last_seconds: float | None

    @property
    def key(self) -> str:
        """Exports with the same key take about the same time."""
        return f"{self.config.name} {self.bundle.bytes} {self.request.threads or 'all'} threads"

    def lines(self) -> list[str]:
        """Return what `lira-edge export --dry-run` prints."""
        bundle, llm = self.bundle, self.config.llm
        shown = [
            f"would write {self.request.output}: {self.config.name}, {llm.family}, {llm.num_layers} layers, "
            f"{bundle.context_length} slots of the KV cache"
        ]
        for stage, files in bundle.stage_files.items():
            names = ", ".join(files)
            shown.append(f"  {stage:<17}{bundle.dtypes[stage]}{size_text(sum(files.values())):>12}  {names}")
        for name, size in bundle.other_files.items():
            shown.append(f"  {name:<21}{size_text(size):>12}")
        free = size_text(free_bytes(self.request.output))
        shown.append(f"disk: about {size_text(bundle.bytes)}, {free} are free")
        if self.stored_dtype is None and "all" not in self.request.dtypes:
            shown.append("dtypes: fp16, or fp32 if the base model's weights turn out to be fp32")
        available = available_mib()
        about = "" if available is None else f", {available:,} MiB are available"
        shown.append(f"memory: about {bundle.memory >> 20:,} MiB at its peak{about}")
        last = "never exported here" if self.last_seconds is None else duration_text(self.last_seconds)
        shown.append(f"last time: {last}")
        if self.downloads:
            shown.append(f"to download: {', '.join(file.name for file in self.downloads)}")
        if self.read:
            shown.append(f"downloaded now, to read it: {', '.join(file.name for file in self.read)}")
        return shown


def plan_export(request: ExportRequest, announce: Announce = lambda line: None) -> ExportPlan:
    """Return what an export will do. Only configuration and tokenizer are downloaded from the hub.

    ``announce`` is called with a line about each file on the hub, and about room for them.

    Raises:
        LiraError: what the export would raise before it reads weights: a part is missing or there are
            several, the output is taken, the disk is too small, a file is no checkpoint's, or configuration,
            tokenizer, prompts, context length or dtypes do not fit each other.
    """
    for path in (str(request.output), request.checkpoint, *request.given.values()):
        check_path(path)
    sources = find_sources(request.checkpoint, size=request.size, given=request.given, config=request.config)
    check_target(request.output, request.overwrite)  # nobody downloads gigabytes for it in vain
    on_hub = sources.hub_files()
    check_room(on_hub, announce)
    read = sources.configuration_files()
    base, own = sources.fetch_configuration()
    config = LiraConfig.from_files(own, base, sources.name)
    stored = _check_local_files(sources, base)
    tokenizer = read_tokenizer(base)
    if family_of(config.llm.family).padded_vocabulary:  # LIRA's file has one row per token
        add_lira_tokens(tokenizer)
        config = replace(config, llm=replace(config.llm, vocab_size=tokenizer.get_vocab_size()))
    bundle = plan_bundle(config, tokenizer, request.context_length, request.dtypes, stored or "float16")
    check_disk(request.output, bundle.bytes, "the bundle")
    missing = tuple(file for file in on_hub if not file.cached)
    known = {(file.tree.repository, file.name) for file in read}
    downloads = tuple(file for file in missing if (file.tree.repository, file.name) not in known)
    plan = ExportPlan(request, sources, config, bundle, downloads, tuple(read), stored, None)
    return replace(plan, last_seconds=DURATIONS.last(plan.key))


def _check_local_files(sources: Sources, base: Path) -> str | None:
    """Look at the files in the user's folders; return the dtype of the base model's weights if it is there.

    Raises:
        LiraError: a file is not one that can hold a checkpoint's tensors.
    """
    for part in PARTS:
        for path in sources.local_files(part):
            try:
                if path.suffix == ".safetensors":
                    open_safetensors([path])
                else:
                    refuse_foreign(path, not_a_pth)
            except OSError as error:
                raise LiraError(f"{path} cannot be read ({error.strerror})") from None
    return stored_dtype(open_base(base)) if sources.local_files(BASE) else None
