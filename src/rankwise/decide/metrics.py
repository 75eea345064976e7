"""Metrics by name: which way is better, and what margin goes without saying."""

from rankwise.errors import RequestError

LOWER_IS_BETTER = ("loss", "nll", "perplexity", "ppl", "error", "wer", "cer", "mse", "rmse", "mae")
HIGHER_IS_BETTER = (
    "accuracy", "acc", "score", "f1", "exact_match", "em", "bleu", "rouge", "meteor", "cider", "nist", "chrf",
    "pearson", "spearman", "matthews", "mcc", "auc", "precision", "recall", "reward", "pass", "win_rate",
)  # fmt: skip
LOSS_MARGIN = 0.02  # nats; docs/decision.md says why
SHARE_MARGIN = 0.01  # of metrics between 0 and 1: a point of accuracy


def higher_is_better(metric: str) -> bool | None:
    """Tell by its conventional name whether more of a metric is better; None if the name says nothing."""
    words = metric.lower().replace("-", "_").replace("/", "_")
    for names, answer in ((LOWER_IS_BETTER, False), (HIGHER_IS_BETTER, True)):
        if any(
            words == name or words.startswith((f"{name}_", name + "@")) or words.endswith(f"_{name}") for name in names
        ):
            return answer
    return True if words.startswith(("rouge", "bleu", "f1", "accuracy")) else None


def default_margin(metric: str, largest: float, smallest: float) -> float:
    """Return the margin for a metric where none was given.

    Args:
        metric: its name.
        largest: of its values.
        smallest: of its values.

    Raises:
        RequestError: the metric is no loss and does not lie between 0 and 1, so that no margin goes without saying.
    """
    if metric == "loss":
        return LOSS_MARGIN
    if smallest >= 0 and largest <= 1:
        return SHARE_MARGIN
    raise RequestError(
        f"margin: none goes without saying for {metric!r}, whose values run from {smallest:g} to {largest:g}; "
        "give the difference that a smaller rank may cost"
    )
