"""Write the command that reproduces a run."""

from __future__ import annotations

import os
import shlex
import subprocess


def command_text(command: str, *positional: object, **options: object) -> str:
    """Return `lira-edge COMMAND` with its arguments, as `program_text` writes them."""
    return program_text(f"lira-edge {command}", *positional, **options)


def program_text(program: str, *positional: object, **options: object) -> str:
    """Return `program`, words with spaces between them, and its arguments, quoted for the shell.

    `options`: name of a parameter -> value; `max_tiles=6` becomes `--max-tiles 6`. True is a flag, a list or
    a tuple repeats the option, None and False are left out. Callers leave out values that are the default.
    """
    words = [str(value) for value in positional if value is not None]
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or value is False:
            continue
        if value is True:
            flags.append(flag)
        else:
            for one in value if isinstance(value, (list, tuple)) else (value,):
                flags += [flag, str(one)]
    # The parser takes a word with a dash in front for an option, unless it stands behind `--`.
    arguments = [*flags, "--", *words] if any(word.startswith("-") for word in words) else [*words, *flags]
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join([*program.split(), *arguments])
