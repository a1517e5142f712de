"""Torch reference of LIRA: compact modules, equal to upstream in fp32 (tests/export/test_golden_reference.py)."""
