"""Find the first node that a device computes wrongly, for `lira-edge verify --bisect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.cuda.driver import DriverName
from lira_engine.engines.finding import Finding
from lira_engine.engines.origin import origin, require_harmless
from lira_engine.engines.usable import usable_build
from lira_engine.engines.verified import keep_verified
from lira_engine.inspect import Tables
from lira_engine.targets import target_named


def find_wrong_node(
    bundle: Bundle | Path | str,
    target: str,
    precision: str,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda what: None,
    driver: DriverName = "auto",
) -> list[Finding]:
    """Compare each built stage on this machine's device with its lowered graph, which ONNX Runtime computes
    on the CPU node by node. Return what was found, up to the first wrong stage.
    `driver`: see `open_engines`.

    The engines then count as not verified. Raises LiraError if the engines are missing,
    stale, altered or foreign, if the device or ONNX Runtime is missing, or if memory or disk are short.
    """
    chosen = target_named(target).with_driver(driver)
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    build = usable_build(bundle, chosen, precision)
    folder = bundle.engine_folder(target, precision)
    require_harmless(origin(build, chosen, folder), build, chosen, bundle.path)
    chosen.setting()
    if build.verified is not None or build.known.checked:  # a wrong engine may also crash this process
        keep_verified(build, None)
    findings: list[Finding] = []
    with chosen.searcher(bundle, build, threads, progress) as search:
        for stage in STAGES:
            findings.append(search(stage))
            if findings[-1].wrong or findings[-1].remark:
                break
    return findings


def tables(findings: Sequence[Finding]) -> Tables:
    """Return findings as tables to print."""
    rows: list[tuple[str, ...]] = []
    for one in findings:
        right = not (one.wrong or one.remark)
        nodes = f"{one.nodes} nodes"
        rows.append((one.stage, f"within {one.error:.1e}" if right else "wrong", nodes))
    wrong = next((one for one in findings if one.wrong or one.remark), None)
    what = "every stage is right" if wrong is None else f"{wrong.stage} is wrong"
    found: Tables = [(f"device beside its lowered graphs on the CPU: {what}", rows)]
    for one in findings:
        if one.wrong is not None:
            found.append((f"first wrong node of {one.stage}", one.wrong.rows()))
    return found
