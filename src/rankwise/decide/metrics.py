"""Metrics by name: what tools call them, which way is better, and what margin goes without saying."""

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

VALIDATION = (
    "eval",
    "evaluation",
    "val",
    "valid",
    "validation",
    "dev",
    "heldout",
    "held_out",
    "holdout",
)
TEST = ("test",)
TRAIN = ("train", "training")

# A mean negative log-likelihood of held-out data goes by these names; all of them become "loss".
LOSSES = (
    "loss", "nll", "mean_nll", "neg_log_likelihood", "negative_log_likelihood", "cross_entropy", "ce", "ce_loss",
    "cross_entropy_loss", "log_loss", "logloss", "lm_loss", "mean_loss",
)  # fmt: skip
LOWER = {
    "loss", "nll", "perplexity", "ppl", "error", "err", "wer", "cer", "ter", "mse", "rmse", "mae", "mape", "bpb", "bpc",
    "bits", "brier", "ece", "fid", "drift", "xent",
}  # fmt: skip
HIGHER = {
    "accuracy", "acc", "f1", "bleu", "sacrebleu", "rouge", "rougel", "rougelsum", "meteor", "cider", "nist", "spice",
    "chrf", "comet", "bleurt", "bertscore", "em", "exact", "score", "reward", "pearson", "pearsonr", "spearman",
    "spearmanr", "correlation", "mcc", "matthews", "kappa", "auc", "auroc", "auprc", "precision", "recall", "map",
    "mrr", "ndcg", "r2", "pass", "correct", "similarity", "winrate", "iou",
}  # fmt: skip
NEGATIVE = {
    "neg",
    "negative",
}  # of an error, as in scikit-learn's neg_mean_squared_error: more is better
CORRELATIONS = {
    "pearson",
    "pearsonr",
    "spearman",
    "spearmanr",
    "correlation",
    "mcc",
    "matthews",
}  # from -1 to 1
# Shares that are as often given in percent.
PERCENT = {
    "accuracy",
    "acc",
    "f1",
    "em",
    "exact",
    "bleu",
    "sacrebleu",
    "rouge",
    "rougel",
    "rougelsum",
}
LOSS_MARGIN = 0.02  # nats; docs/decision.md says why
SHARE_MARGIN = 0.01  # of metrics between 0 and 1: a point of accuracy
OTHER_MARGIN = 0.01  # of the mean of any other metric
RESERVED = {"rank", "seed", "learning_rate", "example_id", "diverged"}  # columns of the evidence
# A column about a metric's spread or size, not the metric.
SPREAD = {
    "std",
    "stderr",
    "sem",
    "se",
    "ci",
    "var",
    "variance",
    "lower",
    "upper",
    "low",
    "high",
    "count",
    "n",
}


def snake(name: str) -> str:
    """Return a name in lower case with underscores: ``ROUGE-L`` is ``rouge_l``, ``test/nll`` is ``test_nll``."""
    return re.sub(r"[^0-9a-z@]+", "_", name.lower()).strip("_")


def split_part(name: str) -> tuple[str, str]:
    """Split a metric's name into its part of the data and its bare name; the part may be "".

    ``test/nll`` and ``nll_test`` are ``("test", "nll")``, and ``final_eval_loss`` is ``("eval", "loss")``. Any other
    name that speaks of training is of the training data too, whatever else it says.
    """
    plain = snake(name).removeprefix("final_")
    for part in (*VALIDATION, *TEST, *TRAIN):
        if plain.startswith(f"{part}_"):
            return part, plain[len(part) + 1 :]
        if plain.endswith(f"_{part}"):
            return part, plain[: -len(part) - 1]
    words = plain.split("_")
    return next(((part, plain) for part in TRAIN if part in words), ("", plain))


def is_held_out(name: str) -> bool:
    """Whether a name says that it was measured on validation or test data, as ``eval_loss`` and ``test/nll`` do."""
    return split_part(name)[0] in (*VALIDATION, *TEST)


def higher_is_better(metric: str) -> bool | None:
    """Return by convention whether more of a metric is better; None if its name does not tell.

    False for losses, perplexity and errors; True for accuracy, F1, BLEU, ROUGE, exact match, correlations and the
    like. The part of the data (``eval_``, ``test/``) and a trailing number (``rouge1``, ``pass@1``) do not matter.
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
    """Return what 1 is in a metric's own units: 1 for shares and correlations, 100 for percent; None if unknown.

    Args:
        metric: its name.
        values: finite, (n,), at least one.
    """
    words = _words(split_part(metric)[1])
    least, most = values.min(), values.max()
    if (-1 if words & CORRELATIONS else 0) <= least and most <= 1:
        return 1
    return 100 if words & PERCENT and least >= 0 and most <= 100 else None


def _words(bare: str) -> set[str]:
    return {part for word in bare.split("_") for part in (word, re.sub(r"@?\d*$", "", word))}


def find_metrics(
    names: Iterable[str], asked: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """Find the metrics among the names of numeric columns.

    A metric is a name with a known direction, or the one asked for. Its own name drops the part of the data
    (``eval_accuracy`` is ``accuracy``) and the held-out loss is ``loss`` whatever it is called. Where two names say
    the same of validation and of test data, the validation's gets the short name, because a rank that is chosen on
    test data has been fitted to them; the other keeps its part. A training loss is ``train_loss``.

    Returns:
        The metrics, from the name as written to its own name, the held-out loss first and ``train_loss`` last; and
        the names left out.
    """
    names = list(names)
    found: dict[str, str] = {}
    for name in sorted(names, key=_precedence):  # stable
        part, bare = split_part(name)
        if part in TRAIN:
            own = "train_loss" if bare in LOSSES else ""
        elif bare in LOSSES:
            own = "loss"
        else:
            own = bare if higher_is_better(bare) is not None else ""
        if not own and asked is not None and snake(asked) in (snake(name), bare):
            own = snake(name) if part in TRAIN or bare in RESERVED else bare
        if own in found.values():
            # A bare "loss" beside an "eval_loss" is the training loss of a log: not held out, so not a metric.
            own = snake(name) if part else ""
        if own and own not in found.values():
            found[name] = own
    order = {"loss": -1, "train_loss": 1}
    written = {name: position for position, name in enumerate(names)}
    ordered = sorted(found, key=lambda name: (order.get(found[name], 0), written[name]))
    return {name: found[name] for name in ordered}, [name for name in names if name not in found]


def _precedence(name: str) -> int:
    part = split_part(name)[0]
    return 0 if part in VALIDATION else 1 if part in TEST else 2


def default_margin(metric: str, values: np.ndarray) -> float:
    """Return the margin for a metric where none was given.

    Args:
        metric: name of the metric.
        values: finite values of the metric, with either sign, (n,).
    """
    if metric == "loss":
        return LOSS_MARGIN
    sizes = np.abs(values)
    if not sizes.size or sizes.max() <= 1:
        return SHARE_MARGIN
    return OTHER_MARGIN * float(sizes.mean())


def value_range(metric: str, means: Sequence[float | None]) -> tuple[float, float]:
    """Return the least and greatest value that a metric can take, as far as its name tells.

    Args:
        metric: name of the metric; ``"loss"`` is a log-loss or a squared error.
        means: means of the metric, None where unknown. Means above 1 show that a share is in
            percent, and means outside the range that the name gives it has no limits.
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
    """Return whether a task score is a share, which people read in percent."""
    return score.endswith("accuracy")
