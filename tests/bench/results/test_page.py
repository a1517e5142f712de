"""Tables and picture of results, and the pages that are made of submitted files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from lira_bench.results import cli, picture, submission, table
from lira_bench.results.page import BEGIN, END, Entry, filled, read_entries, sections, summary
from lira_bench.results.result import Results
from lira_engine import LiraError

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "results"


def test_the_table_has_a_row_for_each_engine(results: Results) -> None:
    columns, rows = table.table(results)
    first, second, failed, refused = [dict(zip(columns, row, strict=True)) for row in rows]
    assert columns.count("of 21.6") == 2 and rows[0][5] == "0.731x" and rows[0][7] == "0.219x"
    assert (first["engine"], first["size"], first["largest error"]) == (
        "tensorrt-fp16", "4096.0 MiB", "6.0e-04 pixel_encoder.mask_features",
    )  # fmt: skip
    assert (second["first token"], second["decode tok/s"]) == ("1.50 s", "27.3")
    assert (
        second["peak memory"] == "2,200 MiB, card 3,100 MiB"
        and second["energy per answer"] == "22.8 J, board"
    )
    assert (failed[""], refused[""], refused["largest error"]) == (
        "failed",
        "refused",
        "not checked",
    )
    text = table.markdown(results)
    assert "cuda-fp16: /home/a: out of memory" in text and "tensorrt-rtx-int4: needs another card" in text
    assert "The weights are synthetic (random)" in text and "This is not LIRA-2B" not in text
    assert "Cortex-A78AE, 6 cores, 7.4 GiB; asimd; Orin, 7620 MiB, driver 540.4.0; NVIDIA Orin Nano" in text


def test_remarks_name_what_changes_a_figure(results: Results) -> None:
    (first, *others) = results.engines
    assert first.figures is not None and first.figures.card is not None
    hot = dataclasses.replace(first.figures.card, throttled=("thermal",))
    busy = dataclasses.replace(first.figures, quiet=False, card=hot)
    odd = dataclasses.replace(
        results, engines=(dataclasses.replace(first, figures=busy), *others), drift=1.2,
        bundle=dataclasses.replace(results.bundle, is_authors_model=False),
    )  # fmt: skip
    told = "\n".join(table.remarks(odd))
    for part in (
        "This is not LIRA-2B, of which the authors report 21.6 tok/s.",
        "Other programs used the cores, or the card, meanwhile (tensorrt-fp16)",
        "The card lowered its clocks (tensorrt-fp16).",
        "took 1.20 of its first time",
    ):
        assert part in told and part not in "\n".join(table.remarks(results))
    unknown = dataclasses.replace(busy, quiet=None, card=None)
    odd = dataclasses.replace(odd, engines=(dataclasses.replace(first, figures=unknown),))
    assert "is not known (tensorrt-fp16)" in "\n".join(table.remarks(odd))
    assert table.table(odd)[1][0][9] == "not told"


def test_errors_of_the_build_stand_in_brackets(results: Results) -> None:
    one = results.engines[0]
    assert one.error is not None and table.notes(results) == []
    built = dataclasses.replace(one, error=dataclasses.replace(one.error, by="build"))
    assert table.error_cell(built) == "(6.0e-04 pixel_encoder.mask_features)"
    (note,) = table.notes(dataclasses.replace(results, engines=(built,)))
    assert note.startswith("(in brackets: found by the build")


def test_the_picture_has_a_panel_for_each_figure_that_is_known(results: Results) -> None:
    wide = Image.open(BytesIO(picture.picture(results)))
    plain = tuple(
        dataclasses.replace(one, figures=one.figures and dataclasses.replace(one.figures, card=None))
        for one in results.engines
    )
    narrow = Image.open(BytesIO(picture.picture(dataclasses.replace(results, engines=plain))))
    assert wide.width == 1920 > narrow.width == 1560  # eight panels, six
    assert len(wide.convert("RGB").getcolors(1 << 20) or ()) > 20
    nothing = dataclasses.replace(results, engines=results.engines[2:])
    assert Image.open(BytesIO(picture.picture(nothing))).width > 1000


# Pages


@pytest.fixture
def folder(results: Results, tmp_path: Path) -> Path:
    """Three files of two machines."""
    folder = tmp_path / "results"
    folder.mkdir()
    nano = dataclasses.replace(results.bundle, name="lira-nano", synthetic=False, is_authors_model=False)
    other = dataclasses.replace(results.machine, jetson=(), gpus=(), cpu="AMD EPYC")
    submission.write(folder / "c.json", results)
    submission.write(folder / "b.json", dataclasses.replace(results, bundle=nano))
    submission.write(folder / "d.json", dataclasses.replace(results, bundle=nano, machine=other))
    (folder / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nbehind\n")
    return folder


def test_entries_are_sorted_by_machine_and_bundle(folder: Path) -> None:
    entries = read_entries(folder)
    assert [one.file for one in entries] == ["d.json", "c.json", "b.json"]
    text = sections(entries)
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### AMD EPYC, 6 cores", "### NVIDIA Orin Nano (p3768+p3767)",
    ]  # fmt: skip
    assert "**lira-2b (random weights), refseg**, 2026-11-27, [c.json](c.json):" in text
    assert text.count("| of 21.6 |") == 2  # both columns of one table: only LIRA-2B compares
    rows = [line for line in summary(entries).splitlines() if "tensorrt-int4" in line]
    assert len(rows) == 3 and [("1.26x; 0.379x" in row) for row in rows] == [False, True, False]
    assert "failed" not in summary(entries) and "No file" in summary([]) and "No file" in sections([])


def test_words_stand_on_the_left_and_nothing_is_compared_without_lira_2b(results: Results) -> None:
    head, line, row, *_ = summary([Entry("a.json", results)]).splitlines()
    assert "| of 21.6 |" in head and line == "|" + " --- |" * 3 + " ---: |" * 7
    other = dataclasses.replace(results.bundle, is_authors_model=False)
    head, line, row, *_ = summary([Entry("a.json", dataclasses.replace(results, bundle=other))]).splitlines()
    assert "21.6" not in head and line == "|" + " --- |" * 3 + " ---: |" * 6
    assert row.count("|") == head.count("|") == line.count("|")


@pytest.mark.parametrize(("quiet", "told"), [(True, ""), (False, "busy"), (None, "load unknown")])
def test_a_row_of_a_busy_machine_says_so(results: Results, quiet: bool | None, told: str) -> None:
    one = results.engines[0]
    assert one.figures is not None
    loaded = dataclasses.replace(one, figures=dataclasses.replace(one.figures, quiet=quiet))
    entry = Entry("a.json", dataclasses.replace(results, engines=(loaded,)))
    assert summary([entry]).splitlines()[-1].endswith(f"| {told} |")


def test_the_command_fills_its_pages_and_repeats(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n{BEGIN}\n{END}\n")
    cli.results(folder, [page])
    assert "3 submitted files" in capsys.readouterr().out
    texts = [path.read_text() for path in (folder / "README.md", page)]
    assert texts[0].startswith(f"before\n{BEGIN}\n### AMD") and texts[0].endswith(f"{END}\nbehind\n")
    assert "old" not in texts[0] and texts[1].startswith(f"# Page\n{BEGIN}\n| machine |")
    cli.results(folder, [page])
    assert texts == [path.read_text() for path in (folder / "README.md", page)]


def test_a_bad_file_changes_no_page(folder: Path, tmp_path: Path) -> None:
    (folder / "e.json").write_text("{}")
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    before = page.read_text(), (folder / "README.md").read_text()
    command = [sys.executable, "-m", "lira_bench.results", str(folder), "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: e.json lacks")
    assert len(done.stderr.splitlines()) == 1 and before == (
        page.read_text(),
        (folder / "README.md").read_text(),
    )
    (folder / "e.json").unlink()
    with pytest.raises(LiraError, match=r"nowhere.md cannot be read"):
        cli.results(folder, [tmp_path / "nowhere.md"])
    page.write_text(f"{END}{BEGIN}")
    with pytest.raises(LiraError, match=r"page.md lacks the lines"):
        cli.results(folder, [page])
    assert (folder / "README.md").read_text() == before[1]


def test_the_committed_pages_are_what_the_files_give() -> None:
    """Mend by: python -m lira_bench.results docs/results --page README.md"""
    entries = read_entries(FOLDER)
    assert entries
    for path, content in ((FOLDER / "README.md", sections(entries)), (ROOT / "README.md", summary(entries))):
        text = path.read_text(encoding="utf-8")
        assert filled(text, content, path.name) == text
