"""What shrinking adapters found: a row for each rank, a decision for each adapter, the sum of them.

Everything here is plain data; `ShrinkResult.as_dict` is the content of ``decision.json``.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rankwise.decide.sequential import FIRST_LOOK
from rankwise.decide.variance import LEAST_EXAMPLES
from rankwise.formatting import json_value

Verdict = Literal["smaller", "keep", "nothing-learnt"]
RowOutcome = Literal["itself", "within", "worse", "open", "not asked"]

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM allows for ``--max-lora-rank`` (``MaxLoRARanks`` in vllm/config/lora.py)."""
SERVED_BYTES = 2  # a weight in bf16 or fp16, as servers hold adapters


@dataclass(frozen=True, kw_only=True)
class CutRow:
    """One truncation and what is shown about it.

    Attributes:
        rank: Rank of all layers; 0 is the adapter without its low-rank update.
        per_layer: Whether each layer has its own rank, at the size of ``rank`` in all layers.
        largest_rank: Largest rank of a layer.
        params: Entries of all factors A and B.
        bytes: Size of all of its tensors.
        energy: Share of the squared singular values that is kept; says nothing about quality.
        loss: Mean held-out loss: the full adapter's over all examples scored, plus the difference
            over the examples that this one was scored on.
        score: Mean task score, in the same way.
        difference: Mean loss minus that of the full adapter over the examples judged.
        lower: Lower bound of the difference at the look that counts.
        upper: Upper bound of the difference at that look.
        examples: Number of examples judged.
        outcome: Whether it is within the margin, worse, or open; "not asked" below a rank that
            does not hold.
        healed: Whether it was trained on after the cut; ``energy`` is 0 then.
    """

    rank: int
    per_layer: bool
    largest_rank: int
    params: int
    bytes: int
    energy: float
    loss: float
    score: float
    difference: float
    lower: float
    upper: float
    examples: int
    outcome: RowOutcome
    healed: bool = False

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What tells it from the adapter's other truncations: rank, per layer, healed."""
        return self.rank, self.per_layer, self.healed


@dataclass(frozen=True, kw_only=True)
class Healing:
    """A short training of one cut.

    Attributes:
        rank: Rank of the cut.
        steps: Optimizer steps.
        learning_rate: Learning rate of the training whose adapter was judged.
        rates: All rates tried, ascending.
        examples: Number of training examples.
        shared: Examples of the training data left out because they are held out.
        seconds: Time of the training at all rates.
        taken: Whether the healed adapter takes the place of the cut.
    """

    rank: int
    steps: int
    learning_rate: float
    rates: tuple[float, ...]
    examples: int
    shared: int
    seconds: float
    taken: bool = False


@dataclass(frozen=True, kw_only=True)
class AdapterDecision:
    """What is shown about one adapter.

    Attributes:
        adapter: Directory of the adapter.
        own_rank: Largest rank of its layers.
        verdict: "smaller" if a truncation holds, "keep" if none does, or "nothing-learnt".
        rank: Smallest rank that holds, the adapter's own if none does; None if nothing is learnt.
        answer: The decision in a sentence.
        evidence: What it rests on.
        caveats: What weakens it, and what would settle an open rank.
        table: The adapter, its truncations from the largest, and the adapter without its update.
        passes: Forward passes of one example.
        seconds: Time of these.
        examples: Number of held-out examples scored.
        engine: Engine that scored.
        healing: The training after the cut, if one was asked for and made.
    """

    adapter: Path
    own_rank: int
    verdict: Verdict
    rank: int | None
    answer: str
    evidence: str
    caveats: tuple[str, ...]
    table: tuple[CutRow, ...]
    passes: int
    seconds: float
    examples: int
    engine: str
    healing: Healing | None = None

    @property
    def full(self) -> CutRow:
        """The row of the adapter itself."""
        return self.table[0]

    @property
    def chosen(self) -> CutRow | None:
        """The row of the smallest rank that holds; None unless it is smaller."""
        if self.verdict != "smaller":
            return None
        is_healed = self.healing is not None and self.healing.taken
        at_rank = (row for row in self.table if row.rank == self.rank and not row.per_layer)
        return next(row for row in at_rank if row.healed == is_healed)

    @property
    def smaller_pattern(self) -> CutRow | None:
        """The smallest truncation with a rank for each layer that holds, if below ``rank``."""
        rows = [row for row in self.table if row.per_layer and row.outcome == "within"]
        smallest = min(rows, key=lambda row: row.params, default=None)
        own = self.chosen or self.full
        return smallest if smallest is not None and smallest.params < own.params else None


@dataclass(frozen=True, kw_only=True)
class ShrinkResult:
    """The result of `rankwise.shrink`.

    Attributes:
        base: Name of the base model.
        device: Device that scored.
        precision: Precision of the base on it.
        data: Name of the held-out data.
        held_out_examples: Number of held-out examples.
        unit: Unit of the loss.
        score: Name of the task score.
        margin: Largest difference in loss that counts as not worse.
        confidence: Confidence of each adapter's answer.
        decisions: One for each adapter, in the order given.
        serving: What a server that holds adapters saves, in sentences.
        directory: Where files were written, if anywhere.
        written: Directory of each truncated adapter.
    """

    base: str
    device: str
    precision: str
    data: str
    held_out_examples: int
    unit: str
    score: str
    margin: float
    confidence: float
    decisions: tuple[AdapterDecision, ...]
    serving: tuple[str, ...]
    directory: Path | None = None
    written: tuple[Path, ...] = ()

    @property
    def rank(self) -> int | None:
        """Smallest rank that holds for every adapter that learnt something; None if none did.

        A rank is wrong for all only if it is wrong for one, so this needs no correction for the
        number of adapters (an intersection-union test, Berger 1982).
        """
        return max((each.rank for each in self.decisions if each.rank is not None), default=None)

    @property
    def verdict(self) -> Verdict:
        """The verdict for all adapters together."""
        if self.rank is None:
            return "nothing-learnt"
        own = max(each.own_rank for each in self.decisions if each.rank is not None)
        return "smaller" if self.rank < own else "keep"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; the rows of all adapters are in one table."""
        rows, adapters = [], []
        for decision in self.decisions:
            name = str(decision.adapter)
            rows += [{"adapter": name, **asdict(row)} for row in decision.table]
            fields = {key: value for key, value in vars(decision).items() if key != "table"}
            healing = decision.healing and asdict(decision.healing)
            changed = {"adapter": name, "caveats": list(decision.caveats), "healing": healing}
            adapters.append({**fields, **changed})
        named = (
            "base", "device", "precision", "data", "held_out_examples", "unit", "score", "margin",
            "confidence",
        )  # fmt: skip
        document = {
            "verdict": self.verdict,
            "rank": self.rank,
            **{name: getattr(self, name) for name in named},
            "adapters": adapters,
            "table": rows,
            "serving": list(self.serving),
            "max_lora_rank": self.rank and vllm_rank(self.rank),
            "forward_passes": sum(each.passes for each in self.decisions),
            "seconds": sum(each.seconds for each in self.decisions),
            "written": [str(path) for path in self.written],
        }
        plain: dict[str, Any] = json_value(document)
        return plain


def vllm_rank(rank: int) -> int | None:
    """Return the smallest ``--max-lora-rank`` of vLLM that has room for a rank; None above 512."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def common_caveats(examples: int) -> list[str]:
    """Return caveats that concern the data."""
    caveats = [
        "Whether an adapter was trained on these examples cannot be known from its files; the "
        "answer holds for data that it was not trained on."
    ]
    if examples < LEAST_EXAMPLES:
        caveats.append(
            f"Fewer than {LEAST_EXAMPLES} held-out examples do not show how much examples vary, so "
            "nothing is decided."
        )
    if examples < FIRST_LOOK:
        caveats.append(
            f"With {examples} examples a rare example that a cut harms may be missing; "
            f"{FIRST_LOOK} or more are better."
        )
    return caveats
