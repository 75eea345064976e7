"""A LoRA adapter in memory: PEFT's tensors and config, and the pairs of factors in them."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rankwise.errors import RequestError, some

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
FACTOR = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))"
)
CARRIED = (".lora_B.bias", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# With these values of init_lora_weights, loading changes the base weight by what depends on the rank.
BASE_CHANGED_BY = ("pissa", "corda", "olora", "loftq", "lora_ga")
# In these delta-W is not scaling * B @ A of what the file holds.
OTHER_FORMS = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "target_parameters": "LoRA on stacked experts (target_parameters)",
}


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        tensors: under the names that PEFT saves, for example ``base_model.model.h.0.q_proj.lora_A.weight``.
        config: the content of ``adapter_config.json``.
    """

    tensors: "Mapping[str, Tensor]"
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """The two factors of one layer: it adds ``scaling * B @ A`` to the frozen weight (Hu et al. 2021, section 4.1).

    Attributes:
        name: of the layer in the base model.
        a: A, ``(r, d_in)``; of a convolution ``(r, channels, *kernel)``, d_in being the product of the latter; of an
            embedding ``(r, entries)``.
        b: B, ``(d_out, r)``; of a convolution ``(d_out, r, 1, ...)``.
        alpha: ``lora_alpha`` of this layer.
        use_rslora: scaling is ``alpha / sqrt(r)`` (Kalajdzievski 2023, section 3), not ``alpha / r``.
        key_a: A's name among the adapter's tensors.
        key_b: B's.
    """

    name: str
    a: "Tensor"
    b: "Tensor"
    alpha: float
    use_rslora: bool
    key_a: str
    key_b: str

    @property
    def rank(self) -> int:
        """R, the number of rows of A."""
        return int(self.a.shape[0])

    @property
    def d_in(self) -> int:
        """Inputs of the layer; of an embedding its entries."""
        return math.prod(self.a.shape[1:])

    @property
    def d_out(self) -> int:
        """Outputs of the layer."""
        return int(self.b.shape[0])

    @property
    def scaling(self) -> float:
        """The factor in front of ``B @ A``."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def is_embedding(self) -> bool:
        """The layer is an embedding: PEFT starts it with zeros in A, every other layer with zeros in B."""
        return ".lora_embedding_" in self.key_a

    def matrices(self) -> "tuple[Tensor, Tensor]":
        """Return A ``(r, d_in)`` and B ``(d_out, r)`` in float64, where a convolution has its kernel laid flat."""
        return self.a.detach().double().flatten(1), self.b.detach().double().flatten(1)

    def with_matrices(self, a: "Tensor", b: "Tensor") -> "Pair":
        """Return this layer with other factors of any rank k, and alpha such that its scaling stays the same.

        With the scaling go the size of a training step and what ``lora_bias`` adds, which PEFT scales too. So one rule
        serves cuts and growth: alpha becomes ``alpha * k / r``, under rsLoRA ``alpha * sqrt(k / r)``.

        Args:
            a: ``(k, d_in)``, of any dtype; kept in that of the factor it replaces.
            b: ``(d_out, k)``, likewise.
        """
        rank = int(a.shape[0])
        alpha = (
            self.alpha * math.sqrt(rank / self.rank)
            if self.use_rslora
            else self.alpha * rank / self.rank
        )
        return replace(
            self,
            a=a.to(self.a.dtype).reshape(rank, *self.a.shape[1:]).contiguous(),
            b=b.to(self.b.dtype).reshape(self.d_out, rank, *self.b.shape[2:]).contiguous(),
            alpha=alpha,
        )


def pairs(adapter: Adapter) -> list[Pair]:
    """Return an adapter's pairs of factors, in the order of the layers' names (2 before 10).

    Raises:
        RequestError: a factor is missing, has another rank than the config says or a weight that is not finite; or
            delta-W is not ``scaling * B @ A``.
    """
    config = adapter.config
    for setting, form in OTHER_FORMS.items():
        if config.get(setting):
            raise RequestError(
                f"{form} is not supported: its delta-W is not scaling * B @ A; allowed is plain LoRA"
            )
    keys: dict[str, dict[str, str]] = {}
    for key in adapter.tensors:
        if match := FACTOR.fullmatch(key):
            keys.setdefault(match["layer"], {})[match["side"] or match["embedding"]] = key
        elif ".lora_" in key and not key.endswith(CARRIED):
            raise RequestError(
                f"{key!r} is no tensor of a LoRA adapter; expected names such as x.lora_A.weight"
            )
    if not keys:
        raise RequestError(
            f"there are no LoRA factors among its tensors ({some(adapter.tensors, 3) or 'none'}); "
            "expected names such as x.lora_A.weight"
        )
    return [_pair(adapter, layer, keys[layer]) for layer in sorted(keys, key=_by_numbers)]


def _pair(adapter: Adapter, layer: str, keys: dict[str, str]) -> Pair:
    name = layer.removeprefix(PREFIX)
    for side, other in (("A", "B"), ("B", "A")):
        if side not in keys:
            missing = re.sub(rf"_{other}(\.weight)?$", rf"_{side}\1", keys[other])
            raise RequestError(
                f"layer {name!r} has lora_{other} but no lora_{side} ({missing!r} is missing)"
            )
    a, b = adapter.tensors[keys["A"]], adapter.tensors[keys["B"]]
    rank = _setting(adapter.config, "rank_pattern", "r", name)
    alpha = _setting(adapter.config, "alpha_pattern", "lora_alpha", name)
    if not float(rank).is_integer() or rank < 1:
        raise RequestError(
            f"rank {rank!r} of layer {name!r}: allowed is a whole number, at least 1"
        )
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != rank:
        raise RequestError(
            f"lora_A of layer {name!r} has shape {tuple(a.shape)}, but adapter_config.json says rank {rank}"
        )
    if b.shape[1] != rank or math.prod(b.shape[2:]) != 1:
        why = " (a convolution in groups is not supported)" if b.ndim > 2 else ""
        raise RequestError(
            f"lora_B of layer {name!r} has shape {tuple(b.shape)}, expected (d_out, {int(rank)}){why}"
        )
    for side, tensor in (("A", a), ("B", b)):
        if not tensor.is_floating_point():
            raise RequestError(
                f"lora_{side} of layer {name!r} is of dtype {tensor.dtype}; allowed are floating-point ones"
            )
        if not bool(tensor.detach().double().isfinite().all()):
            raise RequestError(f"lora_{side} of layer {name!r} has weights that are not finite")
    return Pair(
        name, a, b, float(alpha), bool(adapter.config.get("use_rslora")), keys["A"], keys["B"]
    )


def _setting(config: Mapping[str, Any], pattern: str, otherwise: str, name: str) -> Any:
    """Return a layer's rank or alpha as PEFT finds it: the first pattern that matches the end of its name."""
    value = config.get(otherwise, 8)  # PEFT's default for both
    try:
        found = [
            own
            for key, own in (config.get(pattern) or {}).items()
            if re.match(rf"(.*\.)?({key})$", name)
        ]
    except (AttributeError, re.error):
        raise RequestError(
            f"{pattern} in adapter_config.json is no mapping from patterns of names"
        ) from None
    value = found[0] if found else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(
            f"{otherwise} {value!r} of layer {name!r} in adapter_config.json is not a number"
        )
    return value


def with_pairs(adapter: Adapter, changed: Iterable[Pair]) -> Adapter:
    """Return an adapter with other factors, and ``r``, ``lora_alpha`` and the patterns that go with them.

    All its layers must be among them. Every other tensor (``modules_to_save``, biases) is carried over as it is.
    """
    changed = list(changed)
    tensors = {
        **adapter.tensors,
        **{pair.key_a: pair.a for pair in changed},
        **{pair.key_b: pair.b for pair in changed},
    }
    ranks, alphas = (
        {pair.name: getattr(pair, what) for pair in changed} for what in ("rank", "alpha")
    )
    largest = max(changed, key=lambda pair: pair.rank)
    config = {
        **adapter.config,
        "r": largest.rank,
        "lora_alpha": _plain(largest.alpha),
        "rank_pattern": _pattern(ranks),
        "alpha_pattern": _pattern({name: _plain(alpha) for name, alpha in alphas.items()}),
    }
    if (
        config.get("init_lora_weights") == "orthogonal"
    ):  # refuses odd ranks, even where weights are loaded after it
        config["init_lora_weights"] = True
    return Adapter(tensors, config)


def _pattern(values: dict[str, Any]) -> dict[str, Any]:
    """Return a pattern for PEFT, empty where all layers agree.

    PEFT takes the first key that ends the layer's name; so every layer has one, and longer names come first.
    """
    if len(set(values.values())) == 1:
        return {}
    return {name: values[name] for name in sorted(values, key=len, reverse=True)}


def _plain(value: float) -> float:
    """Return a whole number as an ``int``, as PEFT writes alpha."""
    return int(value) if value.is_integer() else value


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Order names with numbers in them as people count."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
