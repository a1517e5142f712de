"""The copies by which a card's bandwidth is measured, made through the real package of CUDA's calls."""

from __future__ import annotations

from typing import Any

import pytest

from lira_bench import bandwidth

SIZE = 1 << 20


def test_a_cards_bandwidth_is_copied_on_the_device(asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lira_engine.cuda.opening import open_driver

    monkeypatch.setattr(bandwidth, "_BYTES", SIZE)
    driver = open_driver()
    with asking() as asked:
        assert bandwidth.copy_bandwidth(driver) > 0
    assert asked.copies == {("device", "device", SIZE): 6 * 8}, "a pass to set up and five, eight copies each"
    assert asked.memory["now"] == 0 and asked.memory["peak"] == 2 * SIZE
