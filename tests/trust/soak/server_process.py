"""`lira-edge serve`, with a leak planted in it or none, that writes what it takes when it gets SIGUSR1:
`python -m soak.server_process LEAK FILE serve ...`."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from lira_engine.main import main
from soak.leaks import LEAKS, plant
from soak.measured import settled

if __name__ == "__main__":
    leak, told = sys.argv.pop(1), Path(sys.argv.pop(1))
    if leak in LEAKS:
        plant(leak)

    def tell(*_: object) -> None:
        partial = told.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(settled())))
        os.replace(partial, told)

    signal.signal(signal.SIGUSR1, tell)
    main()
