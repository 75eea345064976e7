import math

import pytest

from rankwise.decide.metrics import find_metrics, higher_is_better, value_range


@pytest.mark.parametrize(
    "metric",
    [
        "loss",
        "eval_loss",
        "val/nll",
        "test nll",
        "perplexity",
        "eval_ppl",
        "WER",
        "word_error_rate",
        "mse",
        "test/bpb",
        "loss_val",
        "final_eval_loss",
        "mean_negative_log_likelihood",
        "negative_log_likelihood_loss",
    ],
)
def test_lower_is_better(metric: str) -> None:
    assert higher_is_better(metric) is False


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        "eval_accuracy",
        "test accuracy",
        "F1",
        "f1_macro",
        "BLEU",
        "rouge1",
        "rougeL",
        "ROUGE-L",
        "exact_match",
        "em",
        "score",
        "pearson",
        "pass@1",
        "ndcg@10",
        "matthews_correlation",
        "cider",
        "accuracy_test",
        "log_likelihood",
        "neg_mean_squared_error",
    ],
)
def test_higher_is_better(metric: str) -> None:
    assert higher_is_better(metric) is True


@pytest.mark.parametrize(
    "metric",
    [
        "quality",
        "epoch",
        "eval_runtime",
        "eval_samples_per_second",
        "lora_alpha",
        "loss_std",
        "accuracy_ci_low",
        "n",
    ],
)
def test_a_name_may_not_tell(metric: str) -> None:
    assert higher_is_better(metric) is None


def test_metrics_are_told_from_other_columns() -> None:
    found, left_out = find_metrics(
        ["epoch", "BLEU", "lora_alpha", "val_loss", "train_loss", "ROUGE-L"]
    )
    assert list(found.items()) == [
        ("val_loss", "loss"),
        ("BLEU", "bleu"),
        ("ROUGE-L", "rouge_l"),
        ("train_loss", "train_loss"),
    ]
    assert left_out == ["epoch", "lora_alpha"]


def test_validation_comes_before_test_data_and_both_before_a_bare_loss() -> None:
    found, left_out = find_metrics(["loss", "test_loss", "eval_loss", "eval_runtime"])
    assert found == {"eval_loss": "loss", "test_loss": "test_loss"}
    assert left_out == ["loss", "eval_runtime"]
    assert find_metrics(["test_loss", "loss"])[0] == {"test_loss": "loss"}
    assert find_metrics(["loss"])[0] == {"loss": "loss"}


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("loss_train", "loss_val"),
        ("final_train_loss", "final_eval_loss"),
        ("nll_in_training_mode", "nll_holdout"),
    ],
)
def test_what_was_measured_on_training_data_is_no_metric(train: str, held_out: str) -> None:
    assert [
        name for name, own in find_metrics([train, held_out])[0].items() if own != "train_loss"
    ] == [held_out]


def test_the_metric_asked_for_is_found_whatever_its_name() -> None:
    assert find_metrics(["quality", "loss"], "Quality")[0] == {"loss": "loss", "quality": "quality"}
    assert find_metrics(["eval_quality", "epoch"], "quality")[0] == {"eval_quality": "quality"}
    assert find_metrics(["test_rank"], "test_rank")[0] == {"test_rank": "test_rank"}


def test_the_range_of_a_metric_follows_from_its_name_unless_its_means_refute_it() -> None:
    for name in ("accuracy", "token accuracy", "exact_match", "f1"):
        assert value_range(name, [0.2, None, 1.0]) == (0, 1), name
        assert value_range(name, [0.2, 98.0]) == (0, 100), name
    for name in ("loss", "mse", "perplexity", "word_error_rate"):
        assert value_range(name, [0.0, 7.0]) == (0, math.inf), name
    assert value_range("negative absolute error", [-3.0]) == (-math.inf, 0)
    assert value_range("reward", [0.5]) == (-math.inf, math.inf)
    assert value_range("loss", [-2.0, 0.1]) == (-math.inf, math.inf)  # of a density
