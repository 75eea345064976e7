"""Names of columns without the prefixes of the tools that wrote them."""

import pytest

from rankwise.analysis.names import bare_name, measure_names, setting_columns, unqualified


@pytest.mark.parametrize(
    "written",
    [
        "params.lora_r", "params_lora_r", "config/lora_r", "config.lora_r", "config.lora_r.value",
        "user_attrs_lora_r", "user_attrs.lora_r", "hparams/lora_rank", "config.peft.r", "peft.rank",
        "config.peft_config.default.r", "config/train_loop_config/lora_r", "params.lora/rank", "R",
        "summary.lora_r", "training_args.lora_r", "hyperparameters.rank",
    ],
)  # fmt: skip
def test_a_rank_is_known_behind_every_prefix(written: str) -> None:
    assert setting_columns(["x", written, "params.alpha"], "rank") == [written]


@pytest.mark.parametrize(
    "written", ["config.distributed.rank", "data.r", "params.rank_alpha", "rank.x"]
)
def test_a_setting_of_another_section_is_no_lora_rank(written: str) -> None:
    assert setting_columns([written], "rank") == []


def test_the_most_explicit_name_of_a_rank_comes_first() -> None:
    columns = ["rank", "r", "config.peft.r", "lora_r"]
    assert setting_columns(columns, "rank") == ["lora_r", "config.peft.r", "r", "rank"]


def test_a_logged_learning_rate_is_not_the_chosen_one() -> None:
    logged = ["metrics.learning_rate", "train/learning_rate", "summary.train/learning_rate"]
    assert setting_columns(logged, "learning_rate") == []
    assert setting_columns([*logged, "config/opt/lr"], "learning_rate") == ["config/opt/lr"]
    assert setting_columns(["data.seed", "params.seed"], "seed") == ["params.seed"]


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ("metrics.eval_loss", "eval_loss"), ("summary.eval/loss", "eval/loss"),
        ("values_eval_loss", "eval_loss"), ("values_0", "values_0"), ("params", "params"),
        ("_timestamp", "_timestamp"), ("eval/loss", "eval/loss"),
    ],
)  # fmt: skip
def test_the_rest_of_a_name_stays_as_it_was_written(written: str, rest: str) -> None:
    assert bare_name(written).rest == rest


def test_metrics_keep_their_names_without_prefix() -> None:
    columns = ["metrics.eval_loss", "config.router_aux_loss_coef", "user_attrs_accuracy"]
    assert measure_names(columns) == {
        "metrics.eval_loss": "eval_loss",
        "user_attrs_accuracy": "accuracy",
    }
    assert measure_names(["params.score"], "params.score") == {"params.score": "score"}
    both = measure_names(["eval_loss", "best_eval_loss"])
    assert both == {"eval_loss": "eval_loss", "best_eval_loss": "best_eval_loss"}


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("best_eval_loss", "eval_loss"), ("eval/loss.min", "eval_loss"), ("eval_loss_mean", "eval_loss"),
        ("accuracy_mean", "accuracy"), ("mean_nll", "mean_nll"),
        ("mean_squared_error", "mean_squared_error"), ("mean_average_precision", "mean_average_precision"),
    ],
)  # fmt: skip
def test_words_that_say_which_value_is_meant_are_dropped(written: str, plain: str) -> None:
    assert unqualified(written) == plain
