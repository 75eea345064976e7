"""Metrics by name: their direction, their default margin, and the values that they can take."""

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

VALIDATION = (
    "eval", "evaluation", "val", "valid", "validation", "dev", "heldout", "held_out", "holdout",
)  # fmt: skip
TEST = ("test",)
TRAIN = ("train", "training")

# Names of the mean negative log-likelihood of held-out data; all of them become "loss".
LOSSES = (
    "loss", "nll", "mean_nll", "neg_log_likelihood", "negative_log_likelihood", "cross_entropy",
    "ce", "ce_loss", "cross_entropy_loss", "log_loss", "logloss", "lm_loss", "mean_loss",
)  # fmt: skip
LOWER = {
    "loss", "nll", "perplexity", "ppl", "error", "err", "wer", "cer", "ter", "mse", "rmse",
    "mae", "mape", "bpb", "bpc", "bits", "brier", "ece", "fid", "drift", "xent",
}  # fmt: skip
HIGHER = {
    "accuracy", "acc", "f1", "bleu", "sacrebleu", "rouge", "rougel", "rougelsum", "meteor",
    "cider", "nist", "spice", "chrf", "comet", "bleurt", "bertscore", "em", "exact", "score",
    "reward", "pearson", "pearsonr", "spearman", "spearmanr", "correlation", "mcc", "matthews",
    "kappa", "auc", "auroc", "auprc", "precision", "recall", "map", "mrr", "ndcg", "r2", "pass",
    "correct", "similarity", "winrate", "iou",
}  # fmt: skip
# Negated errors, as in scikit-learn's neg_mean_squared_error: higher is better.
NEGATIVE = {"neg", "negative"}
# Metrics from -1 to 1.
CORRELATIONS = {
    "pearson", "pearsonr", "spearman", "spearmanr", "correlation", "mcc", "matthews",
}  # fmt: skip
# Shares that are often given in percent.
PERCENT = {
    "accuracy", "acc", "f1", "em", "exact", "bleu", "sacrebleu", "rouge", "rougel", "rougelsum",
}  # fmt: skip
# Words of columns about a metric's spread or sample size.
SPREAD = {
    "std", "stderr", "sem", "se", "ci", "var", "variance", "lower", "upper", "low", "high",
    "count", "n",
}  # fmt: skip
RESERVED = {"rank", "seed", "learning_rate", "example_id", "diverged"}  # columns of the evidence

LOSS_MARGIN = 0.02  # nats; docs/decision.md gives the reason
SHARE_MARGIN = 0.01  # for metrics between 0 and 1: one point of accuracy
OTHER_MARGIN = 0.01  # for other metrics: this share of the mean


def snake(name: str) -> str:
    """Return a name in lower case with underscores: ``test/nll`` becomes ``test_nll``."""
    return re.sub(r"[^0-9a-z@]+", "_", name.lower()).strip("_")


def split_part(name: str) -> tuple[str, str]:
    """Split a metric's name into its part of the data, which may be "", and its bare name.

    ``test/nll`` and ``nll_test`` give ``("test", "nll")``; ``final_eval_loss`` gives
    ``("eval", "loss")``. A name with the word "train" anywhere belongs to the training data.
    """
    plain = snake(name).removeprefix("final_")
    for part in (*VALIDATION, *TEST, *TRAIN):
        if plain.startswith(f"{part}_"):
            return part, plain[len(part) + 1 :]
        if plain.endswith(f"_{part}"):
            return part, plain[: -len(part) - 1]
    words = plain.split("_")
    for part in TRAIN:
        if part in words:
            return part, plain
    return "", plain


def is_held_out(name: str) -> bool:
    """Whether a name belongs to validation or test data, as ``eval_loss`` and ``test/nll`` do."""
    return split_part(name)[0] in (*VALIDATION, *TEST)


def higher_is_better(metric: str) -> bool | None:
    """Return a metric's conventional direction; None if its name does not show one.

    The part of the data (``eval_``, ``test/``) and a trailing number (``rouge1``, ``pass@1``) do
    not matter.
    """
    bare = split_part(metric)[1]
    if bare in LOSSES:
        return False
    words = _words(bare)
    if words & SPREAD:
        return None
    if "likelihood" in words:
        return not words & NEGATIVE
    if words & LOWER:
        return bool(words & NEGATIVE)
    return True if words & HIGHER else None


def whole_share(metric: str, values: np.ndarray) -> float | None:
    """Return 1 for shares and correlations, 100 for percentages, None for other metrics.

    Args:
        metric: name of the metric.
        values: its finite values, (n,), at least one.
    """
    words = _words(split_part(metric)[1])
    least, most = values.min(), values.max()
    lowest = -1 if words & CORRELATIONS else 0
    if lowest <= least and most <= 1:
        return 1
    return 100 if words & PERCENT and least >= 0 and most <= 100 else None


def find_metrics(
    names: Iterable[str], asked: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """Find the metrics among the names of numeric columns.

    A metric is a name with a known direction, or the one asked for. Its short name drops the part
    of the data (``eval_accuracy`` becomes ``accuracy``), and the held-out loss becomes ``loss``
    whatever it is called. If two names give the same metric on validation and on test data, the
    validation metric gets the short name, because a rank chosen on test data has been fitted to
    them; the other keeps its part. A training loss becomes ``train_loss``.

    Returns:
        The metrics, a mapping from the name as written to the short name, the held-out loss first
        and ``train_loss`` last; and the names left out.
    """
    names = list(names)
    found: dict[str, str] = {}
    for name in sorted(names, key=_precedence):  # the sort is stable
        short = _short_name(name, asked)
        if short in found.values():
            # A bare "loss" beside an "eval_loss" is a log's training loss, so it is not a metric.
            short = snake(name) if split_part(name)[0] else ""
        if short and short not in found.values():
            found[name] = short
    order = {"loss": -1, "train_loss": 1}
    ordered = sorted(found, key=lambda name: (order.get(found[name], 0), names.index(name)))
    return {name: found[name] for name in ordered}, [name for name in names if name not in found]


def default_margin(metric: str, values: np.ndarray) -> float:
    """Return the margin for a metric where none was given, from its finite values, (n,)."""
    if metric == "loss":
        return LOSS_MARGIN
    sizes = np.abs(values)
    if not sizes.size or sizes.max() <= 1:
        return SHARE_MARGIN
    return OTHER_MARGIN * float(sizes.mean())


def value_range(metric: str, means: Sequence[float | None]) -> tuple[float, float]:
    """Return the least and greatest value that a metric can take, as far as its name shows.

    Args:
        metric: name of the metric; ``"loss"`` is a log-loss or a squared error.
        means: None where unknown. Means above 1 show that a share is in percent; means outside the
            range that the name suggests show that there are no limits.
    """
    known = [mean for mean in means if mean is not None]
    words = set(snake(metric).split("_"))
    least, most = -math.inf, math.inf
    if words & NEGATIVE:
        most = 0.0
    elif words & PERCENT:
        least, most = 0.0, 1.0 if all(mean <= 1 for mean in known) else 100.0
    elif metric == "loss" or words & LOWER:
        least = 0.0
    if all(least <= mean <= most for mean in known):
        return least, most
    return -math.inf, math.inf


def is_share(score: str) -> bool:
    """Whether a task score is a share, which people read in percent."""
    return score.endswith("accuracy")


def _words(bare: str) -> set[str]:
    """Return the words of a bare name, each also without a trailing number."""
    words = bare.split("_")
    return {*words, *(re.sub(r"@?\d*$", "", word) for word in words)}


def _precedence(name: str) -> int:
    part = split_part(name)[0]
    if part in VALIDATION:
        return 0
    return 1 if part in TEST else 2


def _short_name(name: str, asked: str | None) -> str:
    """Return a column's short name as a metric; "" if it is not a metric."""
    part, bare = split_part(name)
    short = ""
    if part in TRAIN:
        short = "train_loss" if bare in LOSSES else ""
    elif bare in LOSSES:
        short = "loss"
    elif higher_is_better(bare) is not None:
        short = bare
    if not short and asked is not None and snake(asked) in (snake(name), bare):
        return snake(name) if part in TRAIN or bare in RESERVED else bare
    return short
