"""`python -m lira_bench.serving`: a server under load, and what a request costs beside a plain loop."""
