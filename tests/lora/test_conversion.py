from typing import Any

import numpy as np
import pytest

from rankwise.lora.conversion import for_original_base
from tests.lora.adapters import make_adapter, products


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_alpha": 5}], ids=str)
def test_the_converted_adapter_adds_the_difference_of_both_at_twice_the_rank(
    settings: dict[str, Any],
) -> None:
    trained, initial = (
        make_adapter(rank=6, seed=1, **settings),
        make_adapter(rank=6, seed=2, **settings),
    )
    both = for_original_base(trained, initial)
    assert both.config["r"] == 12
    before, after = products(initial), products(trained)
    for name, delta in products(both).items():
        np.testing.assert_allclose(delta, after[name] - before[name], rtol=0, atol=1e-12)
