"""The command of `python -m lira_bench.results`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def results(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of submitted files.")],
    page: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Page that gets the table of all engines; repeatable."),
    ] = None,
) -> None:
    """Check submitted files, and put their tables between the markers of FOLDER/README.md and other pages."""
    from lira_bench.results.page import filled, read_entries, sections, summary
    from lira_engine.errors import LiraError
    from lira_engine.system.atomic import atomic_write
    from lira_engine.system.terminal import plain_console

    entries = read_entries(folder)
    contents = {folder / "README.md": sections(entries), **dict.fromkeys(page or (), summary(entries))}
    texts = {}
    for path, content in contents.items():
        try:
            texts[path] = filled(path.read_text(encoding="utf-8"), content, str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise LiraError(f"{path} cannot be read ({error})") from None
    for path, text in texts.items():
        with atomic_write(path) as file:
            file.write(text.encode())
    written = ", ".join(map(str, texts))
    count = f"{len(entries)} submitted file{'' if len(entries) == 1 else 's'}"
    plain_console().print(f"wrote {written}: {count}", soft_wrap=True)
