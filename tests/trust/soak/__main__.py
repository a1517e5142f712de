"""`python -m soak api|server|openings BUNDLE`: prints the record as a line of JSON, exits with 3 if something
grew."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from soak import by_api, by_server
from soak.leaks import LEAKS, plant
from soak.measured import Limits

GREW = 3
"""Exit code, which no error of Python has."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("way", choices=("api", "server", "openings"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="of questions, or of openings")
    parser.add_argument("--mib", type=float, default=Limits.mib, help="that memory may grow by")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--seconds", type=float, default=0, help="to go on asking for, with the API")
    parser.add_argument("--leak", choices=LEAKS, nargs="*", default=[], help="to plant: the soak must fail")
    asked = parser.parse_args()
    limits = Limits(mib=asked.mib)
    if asked.way == "server":
        found = by_server.soak(asked.bundle, asked.count, limits, asked.seed, asked.leak)
    else:
        plant(asked.leak)
        if asked.way == "api":
            found = by_api.soak(asked.bundle, asked.count, limits, asked.seed, asked.seconds)
        else:
            found = by_api.openings(asked.bundle, asked.count, limits)
    print(json.dumps(found))
    raise SystemExit(GREW if found["failed"] else 0)


if __name__ == "__main__":
    main()
