"""Alpha policies: how ``lora_alpha`` follows from the rank."""

import math
from dataclasses import dataclass

from rankwise.errors import RequestError, shown

ALLOWED = "r, 2r, fixed:ALPHA (as in fixed:32), rslora or rslora:ALPHA"
RSLORA_ALPHA = 16.0


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
