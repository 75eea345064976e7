"""Alpha policies, and how the best learning rate follows from rank and ``lora_alpha``."""

import math
from dataclasses import dataclass

from rankwise.errors import RequestError, shown

ALLOWED = "r, 2r, fixed:ALPHA (as in fixed:32), rslora or rslora:ALPHA"
RSLORA_ALPHA = 16.0
FIRST_RATE_CONSTANTS = {"SEQ_CLS": 2e-3, "CAUSAL_LM": 1.7e-3}
"""``learning_rate * sqrt(scaling * rank)`` of a first guess, by PEFT's name of the task.

Classification and regression: MiniLM-L6 on the built-in task (docs/learning-rate.md). Language
models: 3e-4 at ``lora_alpha`` 32, the best rate of most of 35 models (tinker-cookbook,
recipes/chat_sl/results/sft_sweep.md).
"""
USUAL_STEPS = 100  # the constants are for trainings of this many optimizer steps, or more
FEWEST_STEPS = 20  # trainings of fewer steps were not measured


@dataclass(frozen=True)
class AlphaPolicy:
    """The rule that gives each rank its ``lora_alpha``.

    The adapter adds ``scaling * B @ A`` to the frozen weight. LoRA (Hu et al. 2021, section 4.1)
    sets ``scaling = lora_alpha / r``. rsLoRA (Kalajdzievski 2023, section 3) sets
    ``lora_alpha / sqrt(r)``, which keeps the size of activations and gradients as the rank grows.

    ==============  ====================  ==========================
    name            ``lora_alpha``        scaling
    ==============  ====================  ==========================
    ``r``           the rank              1 at every rank
    ``2r``          twice the rank        2 at every rank
    ``fixed:32``    32                    32 / r, falls with the rank
    ``rslora:16``   16                    16 / sqrt(r)
    ==============  ====================  ==========================
    """

    name: str
    multiple: float = 0.0  # lora_alpha = multiple * r + constant
    constant: float = 0.0
    use_rslora: bool = False

    def alpha(self, rank: int) -> float:
        """Return ``lora_alpha`` for a rank, as an ``int`` if it is whole."""
        return whole_as_int(self.multiple * rank + self.constant)

    def scaling(self, rank: int) -> float:
        """Return the factor in front of ``B @ A``."""
        return self.alpha(rank) / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def rate_exponent(self) -> float:
        """The power of the rank by which the learning rate falls, see `carried_rate`."""
        if self.use_rslora:
            return 0.25
        return 0.5 if self.multiple else 0.0


def carried_rate(rate: float, from_rank: int, to_rank: int, policy: AlphaPolicy) -> float:
    """Return the learning rate at one rank that corresponds to a rate at another rank.

    ``rate * sqrt(scaling * rank)`` stays the same. This keeps the size of the adapter's change for
    Adam with A drawn alike at every rank and B = 0 (Chen, Villar and Hayou 2026, "Learning Rate
    Scaling across LoRA Ranks and Transfer to Full Finetuning", arXiv 2602.06204).
    docs/learning-rate.md has measurements. It does not apply to initial values that are taken from
    the base (PiSSA, OLoRA).

    Args:
        rate: the known learning rate.
        from_rank: the rank that it belongs to.
        to_rank: the rank that the result is for.
        policy: gives ``lora_alpha`` at both ranks. The policy ``r`` also serves an adapter that
            keeps its scaling, such as a truncated one.
    """
    return rate * math.sqrt(_speed(from_rank, policy) / _speed(to_rank, policy))


def first_rate(rank: int, policy: AlphaPolicy, task_type: str, steps: int = USUAL_STEPS) -> float:
    """Return the learning rate to try first where none was searched.

    A training of few steps needs a higher rate in proportion, because Adam moves the adapter by
    about the rate in each step (docs/learning-rate.md has measurements).

    Args:
        rank: the rank to train.
        policy: gives its ``lora_alpha``.
        task_type: PEFT's name of the task, ``SEQ_CLS`` or ``CAUSAL_LM``.
        steps: optimizer steps of the training.
    """
    factor = USUAL_STEPS / min(max(steps, FEWEST_STEPS), USUAL_STEPS)
    return factor * FIRST_RATE_CONSTANTS[task_type] / math.sqrt(_speed(rank, policy))


def _speed(rank: int, policy: AlphaPolicy) -> float:
    """Return how fast an adapter changes the layer, up to the square of the learning rate."""
    return policy.scaling(rank) * rank


def rate_formula(rate: float, rank: int, lora_alpha: float, use_rslora: bool) -> str:
    """Return the law of `carried_rate` as a formula in ``lora_alpha`` and ``r``.

    ``scaling * rank`` is ``lora_alpha``, with rsLoRA ``lora_alpha * sqrt(rank)``.

    Args:
        rate: a learning rate that suits the rank.
        rank: its rank.
        lora_alpha: the rank's ``lora_alpha``.
        use_rslora: whether the scaling is rsLoRA's.
    """
    formula = f"{rate:g} * sqrt({lora_alpha:g} / lora_alpha)"
    return f"{formula} * ({rank} / r) ** 0.25" if use_rslora else formula


def whole_as_int(alpha: float) -> float:
    """Return a whole ``lora_alpha`` as an ``int``, as PEFT writes it."""
    return int(alpha) if alpha.is_integer() else alpha


def parse_alpha_policy(text: str) -> AlphaPolicy:
    """Return the policy of a name such as ``"r"``, ``"2r"``, ``"fixed:32"`` or ``"rslora"``.

    Raises:
        RequestError: There is no such policy, or its alpha is not a positive number.
    """
    given = text if isinstance(text, str) else shown(text)
    name, _, number = given.strip().lower().partition(":")
    if name in ("r", "2r") and not number:
        return AlphaPolicy(name, multiple=1.0 if name == "r" else 2.0)
    if name in ("fixed", "rslora") and (number or name == "rslora"):
        try:
            constant = float(number) if number else RSLORA_ALPHA
        except ValueError:
            constant = math.nan
        if math.isfinite(constant) and constant > 0:
            policy = f"{name}:{constant:g}"
            return AlphaPolicy(policy, constant=constant, use_rslora=name == "rslora")
        problem = f"{shown(number)} is not a positive number"
        raise RequestError(f"lora_alpha {shown(text)}: {problem}; allowed: {ALLOWED}")
    hint = f" (did you mean 'fixed:{name}'?)" if name.isdigit() else ""
    raise RequestError(f"lora_alpha {shown(text)} is not a policy; allowed: {ALLOWED}{hint}")
