"""`lira-edge serve`, with leaks planted in it or none, that writes what it takes when it gets SIGUSR1:
`python -m soak.server_process LEAK,LEAK FILE serve ...`."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from lira_engine.main import main
from soak.leaks import plant
from soak.measured import settled

if __name__ == "__main__":
    leaks, told = sys.argv.pop(1).split(","), Path(sys.argv.pop(1))
    plant([leak for leak in leaks if leak])

    def tell(*_: object) -> None:
        partial = told.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(settled())))
        os.replace(partial, told)

    signal.signal(signal.SIGUSR1, tell)
    main()
