"""The rule: the smallest rank that is not worse than any other by more than a margin."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rankwise.decide.decision import Decision
from rankwise.decide.evidence import ChanceLoss, RankResults, read_rank_results
from rankwise.decide.explain import explain
from rankwise.decide.findings import Findings, Rule
from rankwise.decide.metrics import SHARE_MARGIN
from rankwise.decide.wording import PLAIN, Context, Wording
from rankwise.errors import RequestError


def select(
    evidence: pd.DataFrame,
    metric: str = "loss",
    margin: float | None = None,
    confidence: float = 0.95,
    *,
    higher_is_better: bool | None = None,
    noise: float | None = None,
    score_margin: float = SHARE_MARGIN,
    histories: pd.DataFrame | None = None,
    chance_loss: ChanceLoss | None = None,
    wording: Wording = PLAIN,
    trained_at: int | None = None,
    no_prior: bool = False,
) -> Decision:
    """Choose the smallest rank that is not worse than any other by more than the margin.

    Ranks are compared example by example and seed by seed, each at the best of its learning rates.
    The chance that any rank is wrongly cleared stays below what the confidence allows, however many
    ranks there are (`rankwise.decide.clearing`). If no rank is cleared, the decision still
    recommends one, with the confidence that it reaches.

    Args:
        evidence: one row per rank, seed and held-out example. Columns: ``rank`` and the metric;
            optional ``seed``, ``learning_rate``, ``example_id``, ``score`` (a second metric, larger
            is better, that should agree with the loss) and ``diverged`` (marks a trial whose loss
            was not finite, in one row whose values are ignored). Without ``example_id`` a row is a
            trial's aggregate; without ``seed`` there is one trial per rank.
        metric: name of the column to compare by.
        margin: what a smaller rank may cost, in units of the metric. Default: 0.02 nats for the
            loss, 0.01 for metrics between 0 and 1, a hundredth of the mean for others.
        confidence: confidence of the decision, between 0 and 1.
        higher_is_better: direction of the metric; by default known from its conventional name.
        noise: standard deviation over seeds of one trial's mean, if you know it. It replaces the
            estimate from seeds, so that one trial per rank is enough.
        score_margin: how much worse the chosen rank may be in ``score``.
        histories: training losses in columns ``rank``, ``seed``, ``learning_rate``, ``step`` and
            ``train_loss``. They distinguish underfitting from overfitting.
        chance_loss: chance-level held-out loss in nats per example, such as that of guessing by the
            classes' shares. If no rank is clearly below it, nothing was learnt and no rank is
            chosen. A series indexed by ``example_id``, such as the losses of the base model without
            an adapter, is compared example by example.
        wording: how sentences name the loss and its chance level.
        trained_at: the only rank that was trained, if the smaller ranks are truncated adapters. The
            question is then which rank to keep: the adapters of each seed are asked for themselves,
            with examples alone as random, and no rank is diagnosed as underfitting.
        no_prior: judge the noise of seeds by the evidence alone. Otherwise the bound of a loss may
            also rest on what other tasks show (`rankwise.decide.seed_prior`).

    Raises:
        RequestError: the evidence cannot be used, or a number is not allowed.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"rank": [4, 8, 16, 4, 8, 16], "seed": [0, 0, 0, 1, 1, 1],
        ...                       "loss": [0.71, 0.503, 0.501, 0.72, 0.498, 0.502]})
        >>> select(table).rank
        8
    """
    rule = Rule(
        metric=metric,
        margin=margin,
        confidence=confidence,
        higher_is_better=higher_is_better,
        noise=noise,
        score_margin=score_margin,
        chance_loss=chance_loss,
        trained_at=trained_at,
        no_prior=no_prior,
    )
    return decide(read_ranks(evidence, rule), rule, histories, wording=wording)


def decide(
    results: list[RankResults],
    rule: Rule,
    histories: pd.DataFrame | None = None,
    measured: Mapping[int, Mapping[str, Any]] | None = None,
    wording: Wording = PLAIN,
) -> Decision:
    """Apply a rule to ranks' results, as `rankwise.decide.findings.Findings` takes them."""
    return explain(Findings(results, rule, histories, measured or {}), Context(wording=wording))


def read_ranks(evidence: pd.DataFrame, rule: Rule) -> list[RankResults]:
    """Read evidence for a rule.

    Raises:
        RequestError: the evidence cannot be used, or holds fewer than two ranks.
    """
    results = read_rank_results(evidence, rule.metric, rule.higher_is_better, rule.trained_at)
    if len(results) < 2:
        raise RequestError(f"evidence holds {len(results)} rank; at least two are needed")
    return results
