"""The plain data of a result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.shrinking.outcome import (
    AdapterDecision,
    CutRow,
    Healing,
    ShrinkResult,
    common_caveats,
    vllm_rank,
)


def row(
    rank: int,
    outcome: Any,
    per_layer: bool = False,
    params: int | None = None,
    healed: bool = False,
) -> CutRow:
    return CutRow(
        rank=rank,
        per_layer=per_layer,
        largest_rank=rank,
        params=100 * rank if params is None else params,
        bytes=400 * rank,
        energy=0.9,
        loss=0.5,
        score=0.8,
        difference=0.003,
        lower=-0.004,
        upper=0.01,
        examples=256,
        outcome=outcome,
        healed=healed,
    )


def decision(name: str = "a", rank: int | None = 4, **changes: Any) -> AdapterDecision:
    verdict = "nothing-learnt" if rank is None else "keep" if rank == 16 else "smaller"
    table = [
        row(16, "itself"),
        row(8, "within"),
        row(4, "within"),
        row(2, "worse"),
        row(0, "not asked"),
    ]
    fields: dict[str, Any] = {
        "adapter": Path(name),
        "own_rank": 16,
        "verdict": verdict,
        "rank": rank,
        "answer": "Rank 4 of 16 is enough.",
        "evidence": "Ranks were tried.",
        "caveats": ("About 900 held-out examples would show it.",),
        "table": tuple(table),
        "passes": 1000,
        "seconds": 1.5,
        "examples": 256,
        "engine": "fused",
    }
    return AdapterDecision(**{**fields, **changes})


def result(*decisions: AdapterDecision) -> ShrinkResult:
    return ShrinkResult(
        base="owner/base",
        device="cpu",
        precision="fp32",
        data="reviews",
        held_out_examples=1000,
        unit="nats per example",
        score="accuracy",
        margin=0.02,
        confidence=0.95,
        decisions=decisions or (decision(),),
        serving=("vLLM: --enable-lora --max-lora-rank 8",),
    )


def test_the_rank_for_all_is_the_largest_of_those_that_learnt() -> None:
    assert result(decision("a", 4), decision("b", 8)).rank == 8
    assert result(decision("a", 4), decision("b", None)).rank == 4
    assert result(decision("a", 16)).verdict == "keep"
    assert result(decision("a", None)).verdict == "nothing-learnt"


def test_the_document_is_json_with_a_row_for_each_rank() -> None:
    document = json.loads(json.dumps(result().as_dict(), allow_nan=False))
    assert (document["verdict"], document["rank"], document["max_lora_rank"]) == ("smaller", 4, 8)
    assert [each["rank"] for each in document["table"]] == [16, 8, 4, 2, 0]
    assert document["adapters"][0]["adapter"] == document["table"][0]["adapter"] == "a"


def test_a_smaller_pattern_is_the_smallest_that_holds_below_the_chosen_rank() -> None:
    table = (*decision().table, row(2, "within", True, 190), row(8, "within", True, 790))
    pattern = decision(table=table).smaller_pattern
    assert pattern is not None and pattern.params == 190
    assert decision().smaller_pattern is None


@pytest.mark.parametrize(
    ("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (300, 320), (600, None)]
)
def test_vllm_allows_some_ranks_only(rank: int, allowed: int | None) -> None:
    assert vllm_rank(rank) == allowed


def test_the_healed_row_is_the_chosen_one_if_it_was_taken() -> None:
    table = (*decision().table, row(2, "within", healed=True))
    healing = Healing(
        rank=2,
        steps=20,
        learning_rate=2e-3,
        rates=(1e-3, 2e-3),
        examples=160,
        shared=0,
        seconds=1.0,
        taken=True,
    )
    chosen = decision(rank=2, table=table, healing=healing).chosen
    assert chosen is not None and chosen.healed and chosen.rank == 2
    kept = decision(rank=4, table=table, healing=replace(healing, taken=False)).chosen
    assert kept is not None and not kept.healed and kept.rank == 4
    document = result(decision(rank=2, table=table, healing=healing)).as_dict()
    assert document["adapters"][0]["healing"]["steps"] == 20
    assert sum(each["healed"] for each in document["table"]) == 1


def test_few_examples_are_a_caveat() -> None:
    assert len(common_caveats(50)) == len(common_caveats(500)) + 1
