"""Every setting meets values that nobody should give; each is refused in one line, or stands below as allowed."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankwise import analyze
from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig
from rankwise.sweeps.config import SweepConfig, read_yaml

HOSTILE: dict[str, Any] = {
    "null": None,
    "list": ["a", None],
    "empty list": [],
    "nested list": [[4, 8]],
    "dict": {"a": [1]},
    "empty dict": {},
    "true": True,
    "nan": float("nan"),
    "infinity": float("inf"),
    "1e400": "1e400",
    "empty": "",
    "blank": " \n",
    "negative": -1,
    "zero": 0,
    "fraction": 0.5,
    "huge": 10**400,
    "too long to write": 10**5000,
    "null character": "\0",
    "no UTF-8": "caf\udce9",
    "repetitions": "a{99999999999999999999}",
}
# What is no mistake: a name is a name, however odd, and the numbers are in bounds.
NAMES = {"1e400", "repetitions"}
PATHS = NAMES
ALLOWED: dict[str, set[str]] = {
    "model": {"null", *NAMES},
    "data": {"null", *PATHS},
    "eval_data": {"null"},
    "text_column": {"null"},
    "label_column": {"null"},
    "text_pair_column": {"null"},
    "messages_column": {"null"},
    "prompt_column": {"null"},
    "completion_column": {"null"},
    "max_length": {"null"},
    "train_examples": {"null"},
    "budget": {"null", "fraction"},
    "max_memory": {"null"},
    "trainer": {"null"},
    "trainer_config": {"null"},
    "metric": {"null"},
    "direction": {"null"},
    "trial_timeout": {"null"},
    "diagnose": {"true"},
    "target_modules": {"1e400", "null character"},
    "loraplus_ratio": {"fraction"},
    "learning_rate": {"fraction"},
    "margin": {"fraction"},
    "confidence": {"fraction"},
    "warmup_ratio": {"null", "fraction", "zero"},
    "weight_decay": {"fraction", "zero"},
    "lora_dropout": {"fraction", "zero"},
    "max_steps": {"null"},
    "micro_batch_tokens": {"null"},
    "checkpoint_minutes": {"fraction"},
    "max_grad_norm": {"fraction"},
    "trust_remote_code": {"true"},
    "extend": {"true"},
    "no_prior": {"true"},
    "require_confidence": {"true"},
    "out": PATHS,
    "report_to": {"empty", "blank", "empty list"},  # to none
}
PLAN_ALLOWED: dict[str, set[str]] = {
    "model": NAMES,
    "gradient_checkpointing": {"true"},
    "autocast": {"true"},
    "micro_batch_tokens": {"null"},
    "train_examples": {"null"},
    "tflops": {"null"},
    "use_dora": {"true"},
    "lora_dropout": {"fraction", "zero"},
    "trust_remote_code": {"true"},
    "target_modules": {"1e400", "null", "null character"},
    "modules_to_save": {*NAMES, "null character", "empty", "blank", "empty list"},
    "rank_pattern": {"empty", "blank", "empty list", "empty dict"},
    "num_labels": {"null"},
    "device": {"null"},
    "memory": {"null"},
}
ANALYZE_ALLOWED: dict[str, set[str]] = {
    "metric": {"null"},
    "margin": {"null", "fraction"},
    "confidence": {"fraction"},
    "noise": {"null", "fraction"},
    "higher_is_better": {"null"},
    "score_margin": {"null", "fraction"},
    "rank_column": {"null"},
    "seed_column": {"null"},
    "learning_rate_column": {"null"},
    "example_column": {"null"},
}


def refused(call: Any, **values: Any) -> bool:
    try:
        call(**values)
    except RequestError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        return True
    return False


def taken(call: Any, name: str) -> set[str]:
    """Return the kinds of values that a setting takes; a test for each would cost its fixed time."""
    return {kind for kind, value in HOSTILE.items() if not refused(call, **{name: value})}


@pytest.mark.parametrize("name", [item.name for item in fields(SweepConfig)])
def test_a_sweep_s_settings(name: str) -> None:
    assert taken(SweepConfig, name) == ALLOWED.get(name, set())


@pytest.mark.parametrize("name", [item.name for item in fields(PlanConfig)])
def test_a_plan_s_settings(name: str) -> None:
    def plan(**values: Any) -> PlanConfig:
        return PlanConfig(**{"model": "some", **values})

    assert taken(plan, name) == PLAN_ALLOWED.get(name, set())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "results.csv"
    pd.DataFrame({"rank": [4, 4, 8, 8], "seed": [0, 1, 0, 1], "loss": [0.5, 0.6, 0.4, 0.5]}).to_csv(
        path, index=False
    )
    return path


@pytest.mark.parametrize("name", ANALYZE_ALLOWED)
def test_analyze_s_arguments(results: Path, name: str) -> None:
    assert taken(partial(analyze, results), name) == ANALYZE_ALLOWED[name]


@pytest.mark.parametrize("kind", HOSTILE)
def test_analyze_s_paths(kind: str) -> None:
    assert refused(lambda: analyze(HOSTILE[kind]))


def test_a_number_as_text_is_a_number(results: Path) -> None:
    texts: dict[str, Any] = {
        "margin": "0.5",
        "confidence": "0.9",
        "noise": "0.1",
        "score_margin": "0.5",
    }
    numbers = {name: float(value) for name, value in texts.items()}
    assert analyze(results, **texts).as_dict() == analyze(results, **numbers).as_dict()


def test_a_long_value_is_cut_and_a_number_for_a_name_is_helped() -> None:
    with pytest.raises(
        RequestError,
        match=r"seeds 1000\d+\.\.\.: allowed is a whole number.*at most 1000",
    ):
        SweepConfig(seeds=10**400)
    with pytest.raises(
        RequestError, match=r"text_column 0: allowed is a text .*; write 0 in quotes"
    ):
        SweepConfig(data=Path("a.csv"), text_column=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [f"seeds: 1{'0' * 5000}", "out: 2024-13-45", "[" * 5000])
def test_yaml_of_values_that_python_has_not(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.yaml").write_text(content)
    assert refused(read_yaml, path=tmp_path / "sweep.yaml")
