"""The peers that the benchmark runs beside our engines: same machine, same run, in turns.

>>> from lira_bench.peers import compare, table
>>> print(table(compare(bundle, "cpu", "int4", ["genai"], work, threads=None, progress=print)))
"""

from __future__ import annotations

from lira_bench.peers.compare import compare
from lira_bench.peers.registry import PEERS
from lira_bench.peers.result import PeerResult, table

__all__ = ["PEERS", "PeerResult", "compare", "table"]
