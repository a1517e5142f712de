"""An evaluation from its request to its result: read, ask, compare with other engines, draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lira_bench.accuracy import gate, ray_workers
from lira_bench.accuracy.compare import comparison, other_engines
from lira_bench.accuracy.files import images_folder
from lira_bench.accuracy.items import Evaluation, Source, Task
from lira_bench.accuracy.protocol import protocol_for
from lira_bench.accuracy.request import Request
from lira_bench.accuracy.run import Progress, evaluate
from lira_bench.accuracy.tasks import task_named
from lira_bench.accuracy.worker import EngineChoice, Job
from lira_bench.speed.summary import versions
from lira_engine.errors import LiraError
from lira_engine.system import extras
from lira_engine.system.machine import peak_rss_mib, this_machine
from lira_engine.targets import default_precision
from lira_runtime import arguments

FORMAT = "lira-eval-figures"
FORMAT_VERSION = 1
_LEFT_OUT_SHOWN = 10

Bar = Callable[[str], AbstractContextManager[Progress]]
"""Called with the name of engines; gives what is called with (items done, items in all)."""


@dataclass(frozen=True)
class Compared:
    """The other engines: their name and evaluation, and `compare.comparison` of both."""

    name: str
    evaluation: Evaluation
    found: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """An evaluation whose files are in `folder`, and in `folder`/compare-NAME for the other engines.

    `required`: bounds by figure. `told`: lines about what was drawn.
    """

    request: Request
    folder: Path
    evaluation: Evaluation
    compared: Compared | None
    required: dict[str, float]
    told: tuple[str, ...] = ()

    @property
    def rated(self) -> gate.Figures:
        """What the bounds are about: the metrics; with a comparison, those of the other engines and how far
        they agree."""
        if self.compared is None:
            return self.evaluation.metrics
        agreement = {key: self.compared.found[key] for key in ("token_agreement", "mask_iou")}
        return {**self.compared.evaluation.metrics, **agreement}


@contextmanager
def no_bar(_: str) -> Iterator[Progress]:
    """Show no progress."""
    yield lambda done, total: None


def evaluate_request(request: Request, bar: Bar = no_bar) -> Result:
    """Evaluate what `request` names, and write its files; go on where the same evaluation was stopped.

    Raises LiraError for anything that the user can mend, most of it before the first question. Missed bounds
    are no error here: see `gate.check`.
    """
    task = task_named(request.task)
    _check(request, task)
    rules = protocol_for(request.protocol, request.task, request.benchmark)
    rules = rules.changed(request.ilvc, request.instruction, request.max_tiles)
    required = gate.parse(request.require)
    precision = request.precision or default_precision(request.target)
    # Ray's workers have a working directory of their own.
    engines = EngineChoice(request.bundle.resolve(), request.target, precision, request.driver)
    other = None if request.compare is None else other_engines(request.compare, engines)
    source = Source(request.data.resolve(), request.split, request.limit, rules.instruction)
    images = images_folder(source.data, request.images).resolve()
    name = f"{request.target}-{precision}"
    folder = request.output or Path(f"eval-{engines.bundle.name}-{request.task}-{name}")
    dataset = task.read(source).chosen_by(rules)

    def evaluated(choice: EngineChoice, shown: str, out: Path, first: Evaluation | None) -> Evaluation:
        job = Job(choice, request.task, images, rules, request.threads)
        with bar(shown) as progress:
            return evaluate(
                job,
                source,
                dataset,
                out,
                overwrite=request.overwrite,
                workers=request.workers,
                progress=progress,
                compared_with=first,
            )

    this = evaluated(engines, name, folder, None)
    compared = None
    if other is not None:
        other_name, choice = other
        second = evaluated(choice, other_name, folder / f"compare-{other_name}", this)
        compared = Compared(other_name, second, comparison(this, second))
    told: list[str] = []
    if request.task == "attreval":
        from lira_bench.accuracy import bars  # matplotlib takes its time

        told = bars.write(folder / "attributes.png", this.scored, images)
    return Result(request, folder, this, compared, required, tuple(told))


def _check(request: Request, task: Task) -> None:
    """Raise LiraError for options that are wrong whatever the bundle and the data are."""
    if request.workers not in (None, "ray"):
        raise LiraError(f"--workers is {request.workers!r}, expected ray")
    if request.workers == "ray":
        ray_workers.check_installed()
    if task.name == "attreval" and extras.missing_packages("bench"):  # it draws last, after all the work
        raise LiraError(f"--task attreval draws with matplotlib: run {extras.install_line('bench')}")
    arguments.optional_text("--instruction", request.instruction)
    if request.instruction is not None and not task.short_answers:
        raise LiraError(f"--instruction is for questions with short answers, task {task.name} has none")
    if request.split is not None and not task.has_splits:
        raise LiraError(f"--split is for refseg and gcg, the data of task {task.name} has none")


def figures(result: Result) -> dict[str, Any]:
    """Return what `--json` gives to scripts. Keys as in report.json; peak memory in MiB, of this process."""
    this, compared = result.evaluation, result.compared
    required = gate.judged(result.required, result.rated)
    found: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "bundle": this.run["bundle"]["name"],
        **{key: this.run[key] for key in ("target", "precision", "task", "split", "limit", "ilvc")},
        "protocol": this.run["protocol"]["name"],
        "max_tiles": this.run["protocol"]["max_tiles"],
        "metrics": this.metrics,
        "counts": this.counts,
        "left_out": this.left_out[:_LEFT_OUT_SHOWN],
        "required": required,
        "passed": all(one["passed"] for one in required),
        "peak_rss_mib": None if result.request.workers else peak_rss_mib(),
        "machine": {**asdict(this_machine()), "threads": result.request.threads, "versions": versions()},
        "output": str(result.folder),
    }
    if compared is not None:
        found["comparison"] = {"name": compared.name, **compared.found, "counts": compared.evaluation.counts}
    return found
