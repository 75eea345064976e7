import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from rankwise.errors import RequestError
from rankwise.lora.alpha import carried_rate, first_rate, parse_alpha_policy, rate_formula

PUBLISHED = Path(__file__).parents[1] / "data" / "published_rates.json"


@pytest.mark.parametrize("policy", ["r", "2r", "fixed:32", "fixed:0.5", "rslora", "rslora:8"])
def test_scaling_matches_peft(policy: str) -> None:
    from peft import LoraConfig, get_peft_model

    alpha = parse_alpha_policy(policy)
    for rank in (2, 5, 16):
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha.alpha(rank),
            use_rslora=alpha.use_rslora,
            target_modules=["0"],
            lora_dropout=0.0,
        )
        layer = get_peft_model(nn.Sequential(nn.Linear(16, 16)), config).base_model.model[0]
        with torch.no_grad():
            layer.lora_B["default"].weight.normal_()
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight  # (16, 16)
        torch.testing.assert_close(layer.get_delta_weight("default"), alpha.scaling(rank) * product)


def test_policy_names_are_normalized_and_whole_alphas_are_integers() -> None:
    assert parse_alpha_policy(" R ").name == "r"
    assert parse_alpha_policy("fixed:32.0").name == "fixed:32"
    assert isinstance(parse_alpha_policy("r").alpha(8), int)
    assert [parse_alpha_policy("2r").alpha(rank) for rank in (4, 8)] == [8, 16]
    assert parse_alpha_policy("fixed:32").alpha(64) == 32


@pytest.mark.parametrize(
    "text", ["", "3r", "fixed", "fixed:", "fixed:nan", "fixed:0", "rslora:x", "r:2", "32"]
)
def test_an_unknown_policy_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="allowed: r, 2r"):
        parse_alpha_policy(text)


@pytest.mark.parametrize(
    ("policy", "at_rank_64"),  # for 1e-3 at rank 4, which is a 16th
    [("r", 2.5e-4), ("2r", 2.5e-4), ("fixed:16", 1e-3), ("rslora", 5e-4), ("rslora:8", 5e-4)],
)
def test_a_learning_rate_is_carried_by_the_law_of_its_policy(
    policy: str, at_rank_64: float
) -> None:
    """The law of arXiv 2602.06204: half a power of the rank, a quarter, or none."""
    alpha = parse_alpha_policy(policy)
    assert carried_rate(1e-3, 4, 64, alpha) == pytest.approx(at_rank_64)
    assert carried_rate(at_rank_64, 64, 4, alpha) == pytest.approx(1e-3)
    assert 1e-3 * (64 / 4) ** -alpha.rate_exponent == pytest.approx(at_rank_64)


@pytest.mark.parametrize("policy", ["r", "2r", "fixed:16", "rslora"])
def test_the_formula_gives_the_carried_rate(policy: str) -> None:
    alpha = parse_alpha_policy(policy)
    formula = rate_formula(1e-3, 8, alpha.alpha(8), alpha.use_rslora)
    values = {"sqrt": math.sqrt, "lora_alpha": alpha.alpha(32), "r": 32}
    assert eval(formula, values) == pytest.approx(carried_rate(1e-3, 8, 32, alpha))


def test_a_middle_ranks_best_rate_suits_the_other_ranks_of_published_models() -> None:
    """Single runs of 35 language models at a fixed alpha, rates about three times apart."""
    policy, costs = parse_alpha_policy("fixed:32"), []
    for rows in json.loads(PUBLISHED.read_text())["models"].values():
        losses: dict[int, dict[float, float]] = {}
        for rank, rate, loss in rows:
            losses.setdefault(rank, {})[rate] = loss
        middle = sorted(losses)[len(losses) // 2]
        best = min(losses[middle], key=losses[middle].__getitem__)
        for rank, tried in losses.items():
            carried = carried_rate(best, middle, rank, policy)
            if rank >= 4 and rank != middle and carried in tried:
                costs.append(tried[carried] - min(tried.values()))
    assert len(costs) > 60
    assert sum(costs) / len(costs) < 0.0003  # the margin of a decision is 0.02
    assert max(costs) < 0.003


def test_first_rates_agree_with_their_sources() -> None:
    for rank in (1, 8, 128):  # 3e-4 at lora_alpha 32, whatever the rank
        assert first_rate(rank, parse_alpha_policy("fixed:32"), "CAUSAL_LM") == pytest.approx(
            3e-4, rel=0.01
        )
    assert first_rate(4, parse_alpha_policy("r"), "SEQ_CLS") == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("steps", "rate"), [(1000, 1e-3), (100, 1e-3), (50, 2e-3), (20, 5e-3), (1, 5e-3)]
)
def test_a_training_of_few_steps_starts_at_a_higher_rate(steps: int, rate: float) -> None:
    assert first_rate(4, parse_alpha_policy("r"), "SEQ_CLS", steps) == pytest.approx(rate)


@pytest.mark.parametrize("policy", ["r", "2r", "fixed:16", "rslora"])
def test_first_rates_obey_the_law(policy: str) -> None:
    alpha = parse_alpha_policy(policy)
    carried = carried_rate(first_rate(8, alpha, "SEQ_CLS"), 8, 32, alpha)
    assert carried == pytest.approx(first_rate(32, alpha, "SEQ_CLS"))
