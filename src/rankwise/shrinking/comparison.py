"""The course of one adapter: scored in growing blocks until the answer stands."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankwise.decide.sequential import (
    Judgement,
    judge,
    passed,
    planned_looks,
    still_needed,
)
from rankwise.errors import RequestError
from rankwise.lora.adapter import factor_pairs
from rankwise.lora.spectra import Spectrum
from rankwise.shrinking import words
from rankwise.shrinking.config import ShrinkConfig
from rankwise.shrinking.cuts import (
    Cut,
    make_cuts,
    make_per_layer_cuts,
    ranks_below,
    without_update,
)
from rankwise.shrinking.outcome import (
    AdapterDecision,
    CutRow,
    Healing,
    RowOutcome,
    Verdict,
    common_caveats,
)
from rankwise.shrinking.scoring import Scorer, columns

if TYPE_CHECKING:
    from rankwise.shrinking.healing import Healer


class Comparison:
    """An adapter, its truncations and their losses so far.

    Args:
        decomposed: the adapter.
        config: the request.
        scorer: scores it.
        chance_loss: loss of guessing, where the task knows it.
        healer: trains the first cut that fails, if that is asked for.

    Raises:
        RequestError: no rank asked for is below the adapter's own.
    """

    def __init__(
        self,
        decomposed: Spectrum,
        config: ShrinkConfig,
        scorer: Scorer,
        chance_loss: float | None,
        healer: "Healer | None" = None,
    ) -> None:
        self.decomposed = decomposed
        self.config = config
        self.scorer = scorer
        self.chance_loss = chance_loss
        self.healer = healer
        self.healed: Cut | None = None
        self.healing: Healing | None = None
        self.looks = planned_looks(len(scorer.examples))
        self.full = Cut(decomposed.largest_rank, decomposed.adapter)
        self.empty = without_update(decomposed)
        cuts = make_cuts(decomposed, ranks_below(self.full.rank, config.ranks))
        self.families = [cuts]
        if config.per_layer:
            self.families.append(make_per_layer_cuts(decomposed, cuts))
        # Families share the error, and so does a healed cut; within a family the fixed sequence
        # needs no share for each rank.
        shares = len(self.families) + (healer is not None)
        self.confidence = 1 - (1 - config.confidence) / shares
        self._members = [self.full, self.empty, *(cut for each in self.families for cut in each)]
        self._losses = {id(cut): np.empty(0) for cut in self._members}
        self._scores = {id(cut): np.empty(0) for cut in self._members}

    def run(self) -> None:
        """Score in growing blocks until no further example can change the answer.

        Raises:
            RequestError: the adapter's own losses are not finite, or the margin exceeds its gain.
        """
        start = 0
        for stop in self.looks:
            self._score([self.full, *self._needed()], start, stop)
            start = stop
            if not self._needed() or self.learnt.outcome == "worse":
                break
        gain = -self.learnt.mean
        if self.learnt.outcome == "within" and self.config.margin >= gain:
            raise RequestError(
                f"margin {self.config.margin:g}: the adapter gains only {gain:.3g} over the model "
                "without it, so that any cut would pass; give a smaller one (its unit is "
                f"{self.scorer.base.objective.unit})"
            )
        if self.healer is not None and self.learnt.outcome == "within":
            self._heal(self.healer)

    def _score(self, cuts: Sequence[Cut], start: int, stop: int) -> None:
        """Score cuts on the examples from start to stop."""
        frames = self.scorer.score([cut.adapter for cut in cuts], start, stop)
        losses, scores = columns(frames, "loss"), columns(frames, "score")
        for cut, loss, score in zip(cuts, losses, scores, strict=True):
            self._losses[id(cut)] = np.append(self._losses[id(cut)], loss)
            self._scores[id(cut)] = np.append(self._scores[id(cut)], score)
        if not np.isfinite(self._losses[id(self.full)]).all():
            raise RequestError("the adapter's own losses are not finite; nothing can be cut")

    def _heal(self, healer: "Healer") -> None:
        """Train the first cut that failed, or the smallest if all hold, and judge it likewise.

        It is taken if it holds and, beside a cut that holds too, has the lower mean loss.
        """
        cuts = self.families[0]
        count = passed([self.judged(cut).outcome for cut in cuts])
        cut = cuts[min(count, len(cuts) - 1)]
        healed, healing = healer.heal(cut)
        self._losses[id(healed)], self._scores[id(healed)] = np.empty(0), np.empty(0)
        start = 0
        for stop in self.looks:
            needs_full = len(self._losses[id(self.full)]) < stop
            self._score([healed, *([self.full] if needs_full else [])], start, stop)
            start = stop
            if self.judged(healed).outcome != "open":
                break
        before, after = self._losses[id(cut)], self._losses[id(healed)]
        both = min(len(before), len(after))
        is_better = count < len(cuts) or float((before[:both] - after[:both]).mean()) > 0
        taken = self.judged(healed).outcome == "within" and is_better
        self.healed, self.healing = healed, replace(healing, taken=taken)

    def _needed(self) -> list[Cut]:
        """Return the truncations on which more examples may change the answer."""
        needed = [self.empty] if self.learnt.outcome == "open" else []
        for family in self.families:
            outcomes = [self.judged(cut).outcome for cut in family]
            needed += [family[place] for place in still_needed(outcomes)]
        return needed

    def judged(self, cut: Cut) -> Judgement:
        """Return what is shown about a truncation against the full adapter."""
        return judge(self._differences(cut), self.looks, self.config.margin, self.confidence)

    @property
    def against_empty(self) -> Judgement:
        """The full adapter against none; "within" means shown to be better."""
        return judge(-self._differences(self.empty), self.looks, 0.0, self.confidence)

    @property
    def learnt(self) -> Judgement:
        """The full adapter against none, and then against guessing, if that is not shown."""
        against_empty = self.against_empty
        if against_empty.outcome != "within" or self.chance_loss is None:
            return against_empty
        over_chance = self._losses[id(self.full)] - self.chance_loss
        against_chance = judge(over_chance, self.looks, 0.0, self.confidence)
        return against_empty if against_chance.outcome == "within" else against_chance

    def _differences(self, cut: Cut) -> np.ndarray:
        losses = self._losses[id(cut)]
        return losses - self._losses[id(self.full)][: len(losses)]

    def decide(self, directory: Path) -> tuple[AdapterDecision, list[Cut]]:
        """Return the decision, and the truncations to hand over."""
        config, unit = self.config, self.scorer.base.objective.unit
        rows = [self._row(self.full, "itself")]
        for family in self.families:
            rows += self._family_rows(family)
        if self.healed is not None:
            rows.append(self._row(self.healed, self.judged(self.healed).outcome))
        rows.append(self._row(self.empty, "not asked"))
        (cuts, *_), learnt = self.families, self.learnt
        count = passed([self.judged(cut).outcome for cut in cuts])
        holding = cuts[count - 1] if count else None
        if self.healing is not None and self.healing.taken:
            holding = self.healed
        verdict: Verdict = "nothing-learnt"
        if learnt.outcome == "within":
            verdict = "smaller" if holding else "keep"
        chosen = holding if verdict == "smaller" else None
        uniform = rows[1 : 1 + len(cuts)]
        examples = len(self._losses[id(self.full)])
        held_out = len(self.scorer.examples)
        decision = AdapterDecision(
            adapter=directory,
            own_rank=self.full.rank,
            verdict=verdict,
            rank=None if verdict == "nothing-learnt" else (chosen or self.full).rank,
            answer=words.answer(
                verdict,
                self.full.rank,
                next((row for row in rows if chosen and row.kind == chosen.kind), None),
                config.margin,
                config.confidence,
                unit,
            ),
            evidence=words.evidence(uniform, self.against_empty, examples, held_out)
            + words.healing(self.healing, rows),
            caveats=(*common_caveats(held_out), *words.what_would_settle(uniform, config.margin)),
            table=tuple(rows),
            passes=self.scorer.passes,
            seconds=self.scorer.seconds,
            examples=examples,
            engine=self.scorer.name,
            healing=self.healing,
        )
        handed = [chosen] if chosen else []
        pattern = decision.smaller_pattern
        if pattern is not None and verdict != "nothing-learnt":
            handed += [cut for cut in self.families[-1] if cut.rank == pattern.rank]
        return decision, handed

    def _family_rows(self, family: Sequence[Cut]) -> list[CutRow]:
        """Return the rows of truncations; below the first that does not hold none is asked."""
        rows = []
        holds = True
        for cut in family:
            outcome: RowOutcome = self.judged(cut).outcome if holds else "not asked"
            rows.append(self._row(cut, outcome))
            holds = holds and outcome == "within"
        return rows

    def _row(self, cut: Cut, outcome: RowOutcome) -> CutRow:
        judged = self.judged(cut)
        pairs = factor_pairs(cut.adapter)
        energy = self.decomposed.energy_at({pair.name: pair.rank for pair in pairs})
        return CutRow(
            rank=cut.rank,
            per_layer=cut.per_layer,
            largest_rank=cut.largest_rank if cut.rank else 0,
            params=cut.params if cut.rank else 0,
            bytes=cut.bytes if cut.rank else 0,
            energy=energy if cut.rank and not cut.healed else 0.0,
            loss=self._beside_full(cut, self._losses),
            score=self._beside_full(cut, self._scores),
            difference=judged.mean,
            lower=judged.lower,
            upper=judged.upper,
            examples=judged.examples,
            outcome=outcome,
            healed=cut.healed,
        )

    def _beside_full(self, cut: Cut, measures: dict[int, np.ndarray]) -> float:
        """Return a mean that compares with the full adapter's: its own plus the difference.

        Truncations are scored on different numbers of examples.
        """
        full, own = measures[id(self.full)], measures[id(cut)]
        return float(full.mean() + (own - full[: len(own)]).mean())
