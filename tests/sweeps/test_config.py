import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.sweeps.config import SweepConfig, for_task, make_config, read_yaml


def test_text_and_python_values_mean_the_same() -> None:
    text = make_config(
        {
            "ranks": "16, 4,8",
            "seeds": "3",
            "learning_rate": "2e-3,1e-3",
            "target_modules": "query,value",
        }
    )
    values = SweepConfig(
        ranks=(4, 8, 16), seeds=3, learning_rate=(1e-3, 2e-3), target_modules=("query", "value")
    )
    assert text == values


@pytest.mark.parametrize(
    "ranks", [np.array([4, 8]), {8, 4}, range(4, 9, 4), (r for r in (4, 8)), pd.Series([4, 8])]
)
def test_ranks_are_taken_from_any_several_values(ranks: object) -> None:
    config = SweepConfig(ranks=ranks)  # type: ignore[arg-type]
    assert config.ranks == (4, 8)
    assert json.dumps(config.as_dict()["ranks"]) == "[4, 8]"


@pytest.mark.parametrize("ranks", [{4: 8}, np.array([[4, 8]]), None])
def test_ranks_that_are_no_values_are_refused(ranks: object) -> None:
    with pytest.raises(RequestError, match=r"rank .*allowed is a whole number"):
        SweepConfig(ranks=ranks)  # type: ignore[arg-type]


def test_a_set_of_names_has_one_order() -> None:
    names = {"value", "query", "key", "dense"}
    assert SweepConfig(target_modules=names).target_modules == ("dense", "key", "query", "value")  # type: ignore[arg-type]


def test_target_modules_are_a_group_a_regex_or_names() -> None:
    said = {
        text: make_config({"target_modules": text}).target_modules
        for text in ("MLP", ".*layer.(1|2,3).*", "query")
    }
    assert said == {"MLP": "mlp", ".*layer.(1|2,3).*": ".*layer.(1|2,3).*", "query": ("query",)}
    assert make_config({"target_modules": ["all-linear"]}).target_modules == "all-linear"


@pytest.mark.parametrize(("task_type", "ratio"), [("SEQ_CLS", 0.3), ("CAUSAL_LM", 0.1)])
def test_the_default_warm_up_is_the_task_s(task_type: str, ratio: float) -> None:
    assert for_task(SweepConfig(), task_type).warmup_ratio == ratio
    assert for_task(SweepConfig(warmup_ratio=0), task_type).warmup_ratio == 0.0


def test_several_learning_rates_may_be_named_as_such() -> None:
    assert make_config({"learning-rates": "3e-4,1e-4"}) == SweepConfig(learning_rate=(1e-4, 3e-4))


def test_yaml_gives_the_same_config_as_keywords(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    # YAML 1.1 reads 1e-3 as a text and 4,8 as a text; both must still be understood.
    path.write_text(
        "ranks: [4, 8]\nlearning-rate: 1e-3\nlora_alpha: fixed:32\nseeds: 1\nout: here\n"
    )
    assert make_config(read_yaml(path)) == SweepConfig(
        ranks=(4, 8), learning_rate=(1e-3,), lora_alpha="fixed:32", seeds=1, out=Path("here")
    )
    path.write_text("ranks: 4,8\n")
    assert make_config(read_yaml(path)).ranks == (4, 8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ranks": "0,4"}, ["rank", "0", "at least 1"]),
        ({"ranks": "-4,8"}, ["rank", "-4", "at least 1"]),
        ({"ranks": "4.5"}, ["rank", "4.5", "whole number"]),
        ({"ranks": "four"}, ["rank", "'four'", "whole number"]),
        ({"ranks": [4, True]}, ["rank", "True"]),
        ({"ranks": "4,8,4"}, ["rank", "4 given more than once"]),
        ({"ranks": ""}, ["rank", "none given"]),
        ({"seeds": 0}, ["seeds", "0", "at least 1"]),
        ({"epochs": 0}, ["epochs", "at least 1"]),
        ({"batch_size": "x"}, ["batch_size", "'x'"]),
        ({"learning_rate": "nan"}, ["learning_rate", "'nan'", "above 0"]),
        ({"learning_rate": "atuo"}, ["learning_rate", "'atuo'", "'auto'"]),
        ({"learning_rate": float("inf")}, ["learning_rate", "inf"]),
        ({"learning_rate": "-1e-3"}, ["learning_rate", "above 0"]),
        ({"lora_alpha": "32"}, ["'32'", "fixed:32"]),
        ({"lora_alpha": "fixed:-1"}, ["-1", "positive"]),
        ({"lora_alpha": "half"}, ["'half'", "rslora"]),
        ({"margin": -0.1}, ["margin", "-0.1", "above 0"]),
        ({"confidence": 1}, ["confidence", "below 1"]),
        ({"confidence": 95}, ["confidence", "95"]),
        ({"trust_remote_code": "yes"}, ["trust_remote_code", "'yes'"]),
        ({"rank": "4,8"}, ["'rank'", "did you mean 'ranks'"]),
        ({"learning_rat": 1e-3}, ["did you mean 'learning_rate'"]),
        ({"quantization": "nf5"}, ["quantization", "'nf5'", "nf4-dq", "did you mean 'nf4'"]),
        ({"loraplus_ratio": 0}, ["loraplus_ratio", "above 0"]),
        ({"use_dora": True}, ["use_dora", "--engine reference"]),
        ({"engine": "reference", "attention": "varlen"}, ["attention", "leave it out"]),
        ({"device": "gpu"}, ["device 'gpu'", "cuda:N"]),
        ({"micro_batch_tokens": "some"}, ["micro_batch_tokens", "auto", "at least 1"]),
        ({"optimizer": "adamw_8bit"}, ["optimizer", "did you mean 'adamw-8bit'"]),
        ({"init": "pissa"}, ["'pissa'", "gaussian", "--engine reference"]),
        ({"init": "pisa"}, ["did you mean 'pissa'"]),
        (
            {"init": "olora", "engine": "reference", "quantization": "nf4"},
            ["'olora'", "quantization nf4"],
        ),
        (
            {"init": "pissa", "engine": "reference", "use_dora": True},
            ["'pissa'", "use_dora", "one of the two"],
        ),
        (
            {"strategy": "once", "use_dora": True, "engine": "reference"},
            ["use_dora", "strategy once", "grid"],
        ),
        ({"init": "orthogonal", "ranks": "2,3"}, ["'orthogonal'", "rank 3 is odd"]),
        ({"target_modules": "attention,mlp"}, ["'attention'", "stands alone"]),
        ({"target_modules": "query["}, ["'query['", "not a regular expression"]),
        ({"eval_data": "held.csv"}, ["eval_data", "data"]),
        (
            {"data": "all.csv", "allow_duplicates": True},
            ["allow_duplicates", "eval_data, which is missing"],
        ),
    ],
)
def test_bad_values_are_refused_in_one_line(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        make_config(settings)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_yaml_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        read_yaml(tmp_path / "absent.yaml")
    path = tmp_path / "sweep.yaml"
    path.write_text("ranks: [4, 8\n")
    with pytest.raises(RequestError, match="is not YAML"):
        read_yaml(path)
    path.write_text("- 4\n- 8\n")
    with pytest.raises(RequestError, match="mapping"):
        read_yaml(path)


def test_a_setting_under_both_spellings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("batch-size: 4\nbatch_size: 8\n")
    with pytest.raises(
        RequestError, match="'batch-size' and 'batch_size' are the same setting; give one of them"
    ):
        read_yaml(path)
    with pytest.raises(RequestError, match="'max_length' and 'max-length'"):
        make_config({"max_length": 8, "max-length": 16})
