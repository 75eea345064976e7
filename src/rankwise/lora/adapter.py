"""A LoRA adapter in memory: PEFT's tensors and config, and the factor pairs in them."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rankwise.errors import RequestError, some

if TYPE_CHECKING:
    from torch import Tensor

PEFT_PREFIX = "base_model.model."
"""PEFT puts this in front of the base model's names."""

FACTOR_NAME = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))"
)
OTHER_LORA_TENSORS = (".lora_B.bias", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
INITS_THAT_CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""With such init_lora_weights, loading changes the base weight, depending on the rank."""

UNSUPPORTED_SETTINGS = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "target_parameters": "LoRA on stacked experts (target_parameters)",
}
"""With these settings delta-W is not ``scaling * B @ A`` of the saved factors."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        tensors: Tensors under PEFT's names, such as ``base_model.model.h.0.q_proj.lora_A.weight``.
        config: Content of ``adapter_config.json``.
    """

    tensors: "Mapping[str, Tensor]"
    config: Mapping[str, Any]


@dataclass(frozen=True)
class FactorPair:
    """The factors A and B of one layer, which add ``scaling * B @ A`` to its frozen weight.

    See Hu et al. 2021, section 4.1. A convolution has its kernel flattened into ``d_in``.

    Attributes:
        name: Name of the layer in the base model.
        a: A, ``(r, d_in)``; ``(r, channels, *kernel)`` in a convolution; ``(r, entries)`` in an
            embedding.
        b: B, ``(d_out, r)``; ``(d_out, r, 1, ...)`` in a convolution.
        alpha: ``lora_alpha`` of this layer.
        use_rslora: The scaling is ``alpha / sqrt(r)`` (Kalajdzievski 2023, section 3) instead of
            ``alpha / r``.
        key_a: Name of A among the adapter's tensors.
        key_b: Name of B among the adapter's tensors.
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
        """The rank r, which is the number of rows of A."""
        return int(self.a.shape[0])

    @property
    def d_in(self) -> int:
        """Number of inputs of the layer; of entries in an embedding."""
        return math.prod(self.a.shape[1:])

    @property
    def d_out(self) -> int:
        """Number of outputs of the layer."""
        return int(self.b.shape[0])

    @property
    def params(self) -> int:
        """Number of entries of A and B."""
        return self.rank * (self.d_in + self.d_out)

    @property
    def scaling(self) -> float:
        """The factor in front of ``B @ A``."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def is_embedding(self) -> bool:
        """Whether the layer is an embedding, where PEFT starts with A = 0 instead of B = 0."""
        return ".lora_embedding_" in self.key_a

    def matrices(self) -> "tuple[Tensor, Tensor]":
        """Return A ``(r, d_in)`` and B ``(d_out, r)`` in float64, kernels flattened."""
        return self.a.detach().double().flatten(1), self.b.detach().double().flatten(1)

    def with_matrices(self, a: "Tensor", b: "Tensor") -> "FactorPair":
        """Return this layer with factors of another rank k, and alpha such that scaling stays.

        Scaling sets the size of a training step and of the bias that ``lora_bias`` adds, so it must
        not change: alpha becomes ``alpha * k / r``, with rsLoRA ``alpha * sqrt(k / r)``.

        Args:
            a: ``(k, d_in)``; converted to the dtype of the factor that it replaces.
            b: ``(d_out, k)``; converted likewise.
        """
        rank = int(a.shape[0])
        return replace(
            self,
            a=a.to(self.a.dtype).reshape(rank, *self.a.shape[1:]).contiguous(),
            b=b.to(self.b.dtype).reshape(self.d_out, rank, *self.b.shape[2:]).contiguous(),
            alpha=self._alpha_at(rank),
        )

    def _alpha_at(self, rank: int) -> float:
        if self.use_rslora:
            return self.alpha * math.sqrt(rank / self.rank)
        return self.alpha * rank / self.rank


def factor_pairs(adapter: Adapter) -> list[FactorPair]:
    """Return the factor pairs of an adapter, ordered by layer name (2 before 10).

    Raises:
        RequestError: A factor is missing, has another rank than the config says, or holds a weight
            that is not finite; or delta-W is not ``scaling * B @ A``.
    """
    for setting, form in UNSUPPORTED_SETTINGS.items():
        if adapter.config.get(setting):
            raise RequestError(
                f"{form} is not supported: its delta-W is not scaling * B @ A; "
                "allowed is plain LoRA"
            )
    keys: dict[str, dict[str, str]] = {}
    for key in adapter.tensors:
        if match := FACTOR_NAME.fullmatch(key):
            keys.setdefault(match["layer"], {})[match["side"] or match["embedding"]] = key
        elif ".lora_" in key and not key.endswith(OTHER_LORA_TENSORS):
            raise RequestError(
                f"{key!r} is no tensor of a LoRA adapter; expected names such as x.lora_A.weight"
            )
    if not keys:
        raise RequestError(
            f"there are no LoRA factors among its tensors ({some(adapter.tensors, 3) or 'none'}); "
            "expected names such as x.lora_A.weight"
        )
    return [_read_pair(adapter, layer, keys[layer]) for layer in sorted(keys, key=natural_order)]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders the numbers in dotted names by value: 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def replace_pairs(adapter: Adapter, pairs: Iterable[FactorPair]) -> Adapter:
    """Return an adapter with other factors in all its layers, and a config that fits them.

    ``r``, ``lora_alpha`` and the patterns change. Every other tensor stays the same object.
    """
    pairs = list(pairs)
    tensors = dict(adapter.tensors)
    for pair in pairs:
        tensors[pair.key_a], tensors[pair.key_b] = pair.a, pair.b
    largest = max(pairs, key=lambda pair: pair.rank)
    config = {
        **adapter.config,
        "r": largest.rank,
        "lora_alpha": _as_peft_writes(largest.alpha),
        "rank_pattern": _pattern({pair.name: pair.rank for pair in pairs}),
        "alpha_pattern": _pattern({pair.name: _as_peft_writes(pair.alpha) for pair in pairs}),
    }
    if config.get("init_lora_weights") == "orthogonal":
        config["init_lora_weights"] = True  # PEFT refuses odd ranks with it, even to load weights
    return Adapter(tensors, config)


def _read_pair(adapter: Adapter, layer: str, keys: dict[str, str]) -> FactorPair:
    """Return the factor pair of one layer after all checks."""
    name = layer.removeprefix(PEFT_PREFIX)
    for side, other in (("A", "B"), ("B", "A")):
        if side not in keys:
            missing = re.sub(rf"_{other}(\.weight)?$", rf"_{side}\1", keys[other])
            raise RequestError(
                f"layer {name!r} has lora_{other} but no lora_{side} ({missing!r} is missing)"
            )
    a, b = adapter.tensors[keys["A"]], adapter.tensors[keys["B"]]
    rank = _layer_setting(adapter.config, "r", "rank_pattern", name)
    alpha = _layer_setting(adapter.config, "lora_alpha", "alpha_pattern", name)
    if not float(rank).is_integer() or rank < 1:
        raise RequestError(
            f"rank {rank!r} of layer {name!r}: allowed is a whole number, at least 1"
        )
    _check_factors(name, a, b, int(rank))
    use_rslora = bool(adapter.config.get("use_rslora"))
    return FactorPair(name, a, b, float(alpha), use_rslora, keys["A"], keys["B"])


def _check_factors(name: str, a: "Tensor", b: "Tensor", rank: int) -> None:
    """Refuse factors whose shape does not fit the rank, or whose weights are not finite numbers."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != rank:
        raise RequestError(
            f"lora_A of layer {name!r} has shape {tuple(a.shape)}, "
            f"but adapter_config.json says rank {rank}"
        )
    if b.shape[1] != rank or math.prod(b.shape[2:]) != 1:
        hint = " (a convolution in groups is not supported)" if b.ndim > 2 else ""
        raise RequestError(
            f"lora_B of layer {name!r} has shape {tuple(b.shape)}, expected (d_out, {rank}){hint}"
        )
    for side, tensor in (("A", a), ("B", b)):
        if not tensor.is_floating_point():
            raise RequestError(
                f"lora_{side} of layer {name!r} is of dtype {tensor.dtype}; "
                "allowed are floating-point ones"
            )
        if not bool(tensor.detach().double().isfinite().all()):
            raise RequestError(f"lora_{side} of layer {name!r} has weights that are not finite")


def _layer_setting(config: Mapping[str, Any], setting: str, pattern: str, name: str) -> Any:
    """Return a layer's rank or alpha; as in PEFT, the first pattern that ends its name decides."""
    value = config.get(setting, 8)  # PEFT's default for both
    try:
        for key, special in (config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", name):
                value = special
                break
    except (AttributeError, re.error):
        raise RequestError(
            f"{pattern} in adapter_config.json is no mapping from patterns of names"
        ) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(
            f"{setting} {value!r} of layer {name!r} in adapter_config.json is not a number"
        )
    return value


def _pattern(values: dict[str, Any]) -> dict[str, Any]:
    """Return PEFT's pattern for values by layer; empty if all layers agree.

    PEFT takes the first key that ends a layer's name, so every layer gets a key and longer names
    come first.
    """
    if len(set(values.values())) == 1:
        return {}
    return {name: values[name] for name in sorted(values, key=len, reverse=True)}


def _as_peft_writes(alpha: float) -> float:
    """Return a whole alpha as an ``int``."""
    return int(alpha) if alpha.is_integer() else alpha
