"""Torch reference of LIRA: compact modules, equal to upstream in fp32."""
