"""A LoRA adapter in memory: PEFT's tensors and config, and the factor pairs in them."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from rankwise.checks import check_matching_ends, check_whole
from rankwise.errors import RequestError, some
from rankwise.lora.alpha import whole_as_int
from rankwise.lora.experts import join_experts, split_experts, stacked_parameters

if TYPE_CHECKING:
    from torch import Tensor

PEFT_PREFIX = "base_model.model."  # in front of the base model's names
FACTOR_NAME = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))"
)
OTHER_LORA_TENSORS = (".lora_B.bias", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
ENDING = r"(.*\.)?({})$"  # how PEFT uses the keys of rank_pattern and alpha_pattern
# With these init_lora_weights, loading changes the base weight in a way that depends on the rank.
INITS_THAT_CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
# With these settings delta-W is not scaling * B @ A of the saved factors.
UNSUPPORTED_SETTINGS = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
}


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

    See Hu et al. 2021, section 4.1. ``d_in`` of a convolution counts the entries of its kernels,
    ``d_in`` of an embedding its tokens.

    Attributes:
        name: Name of the layer in the base model.
        a: A, ``(r, d_in)``; ``(r, channels, *kernel)`` in a convolution.
        b: B, ``(d_out, r)``; ``(d_out, r, 1, ...)`` in a convolution.
        alpha: ``lora_alpha`` of this layer.
        use_rslora: Whether the scaling is ``alpha / sqrt(r)`` instead of ``alpha / r``.
        key_a: Name of A among the adapter's tensors.
        key_b: Name of B among the adapter's tensors.
        experts: Number of experts whose factors the two tensors hold; see `rankwise.lora.experts`.
    """

    name: str
    a: "Tensor"
    b: "Tensor"
    alpha: float
    use_rslora: bool
    key_a: str
    key_b: str
    experts: int = 1

    @property
    def layer(self) -> str:
        """Name of the layer; of an expert, the parameter that holds all experts."""
        return self.name if self.experts == 1 else self.name.rpartition(".")[0]

    @property
    def rank(self) -> int:
        """The rank r."""
        return int(self.a.shape[0])

    @property
    def d_in(self) -> int:
        """Number of inputs of the layer."""
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
        """Return this layer with factors of another rank k, in the dtypes of the present ones.

        Scaling sets the size of a training step and of the bias that ``lora_bias`` adds, so it must
        not change: alpha becomes ``alpha * k / r``, with rsLoRA ``alpha * sqrt(k / r)``.

        Args:
            a: ``(k, d_in)``.
            b: ``(d_out, k)``.
        """
        rank = int(a.shape[0])
        plain, rslora = self.alpha * rank / self.rank, self.alpha * math.sqrt(rank / self.rank)
        return replace(
            self,
            a=a.to(self.a.dtype).reshape(rank, *self.a.shape[1:]).contiguous(),
            b=b.to(self.b.dtype).reshape(self.d_out, rank, *self.b.shape[2:]).contiguous(),
            alpha=rslora if self.use_rslora else plain,
        )


def factor_pairs(adapter: Adapter) -> list[FactorPair]:
    """Return the factor pairs of an adapter, ordered by layer name (2 before 10).

    Raises:
        RequestError: A factor is missing, has another rank than the config says, or holds a weight
            that is not finite; or delta-W is not ``scaling * B @ A``.
    """
    for setting, form in UNSUPPORTED_SETTINGS.items():
        if adapter.config.get(setting):
            raise RequestError(f"{form} is not supported; allowed is plain LoRA")
    keys: dict[str, dict[str, str]] = {}
    for key in adapter.tensors:
        if match := FACTOR_NAME.fullmatch(key):
            keys.setdefault(match["layer"], {})[match["side"] or match["embedding"]] = key
        elif ".lora_" in key and not key.endswith(OTHER_LORA_TENSORS):
            raise RequestError(f"{key!r} is no tensor of a LoRA adapter, such as x.lora_A.weight")
    if not keys:
        names = some(adapter.tensors, 3) or "none"
        raise RequestError(f"no LoRA factors among its tensors ({names}); expected x.lora_A.weight")
    for setting in ("rank_pattern", "alpha_pattern"):
        patterns = [ENDING.format(key) for key in adapter.config.get(setting) or ()]
        check_matching_ends(f"{setting} in adapter_config.json:", patterns, list(keys))
    pairs = []
    parameters = stacked_parameters(adapter.config, keys)
    for layer in keys:
        pairs += _read_layer(adapter, layer, keys[layer], parameters.get(layer))
    return sorted(pairs, key=lambda pair: natural_order(pair.name))


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
    tensors |= join_experts([pair for pair in pairs if pair.experts > 1])
    largest = max(pairs, key=lambda pair: pair.rank)
    config = {
        **adapter.config,
        "r": largest.rank,
        "lora_alpha": whole_as_int(largest.alpha),
        "rank_pattern": _pattern({pair.layer: pair.rank for pair in pairs}),
        "alpha_pattern": _pattern({pair.layer: whole_as_int(pair.alpha) for pair in pairs}),
    }
    if config.get("init_lora_weights") == "orthogonal":
        config["init_lora_weights"] = True  # PEFT refuses odd ranks with it, even to load weights
    return Adapter(tensors, config)


def _read_layer(
    adapter: Adapter, layer: str, keys: dict[str, str], parameter: str | None
) -> list[FactorPair]:
    """Return the factors of a layer; of stacked experts, those of each expert.

    Args:
        adapter: The adapter.
        layer: Start of the names of the layer's tensors.
        keys: Names of A and B among the tensors.
        parameter: Name of the parameter that holds the experts; None for a layer.
    """
    name = (parameter or layer).removeprefix(PEFT_PREFIX)
    for side, other in (("A", "B"), ("B", "A")):
        if side not in keys:
            missing = re.sub(rf"_{other}(\.weight)?$", rf"_{side}\1", keys[other])
            raise RequestError(
                f"layer {name!r} has lora_{other} but no lora_{side} ({missing!r} is missing)"
            )
    a, b = adapter.tensors[keys["A"]], adapter.tensors[keys["B"]]
    alpha = _layer_setting(adapter.config, "lora_alpha", "alpha_pattern", name)
    rank = _layer_setting(adapter.config, "r", "rank_pattern", name)
    rank = check_whole(f"rank of layer {name!r}", rank, at_least=1)
    experts = a.shape[0] // rank if parameter and a.ndim == 2 and not a.shape[0] % rank else 1
    _check_factors(name, a, b, experts * rank)
    pair = FactorPair(
        name, a, b, float(alpha), bool(adapter.config.get("use_rslora")), keys["A"], keys["B"]
    )
    return [pair] if experts == 1 else split_experts(pair, experts)


def _check_factors(name: str, a: "Tensor", b: "Tensor", rank: int) -> None:
    """Refuse factors with a shape that does not fit the rank, or weights that are not finite."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != rank:
        expected = f"but adapter_config.json says rank {rank}"
        raise RequestError(f"lora_A of layer {name!r} has shape {tuple(a.shape)}, {expected}")
    if b.shape[1] != rank or math.prod(b.shape[2:]) != 1:
        hint = " (a convolution in groups is not supported)" if b.ndim > 2 else ""
        expected = f"expected (d_out, {rank}){hint}"
        raise RequestError(f"lora_B of layer {name!r} has shape {tuple(b.shape)}, {expected}")
    for label, tensor in ((f"lora_A of layer {name!r}", a), (f"lora_B of layer {name!r}", b)):
        if not tensor.is_floating_point():
            raise RequestError(f"{label} is of dtype {tensor.dtype}, which is not floating-point")
        if not bool(tensor.detach().double().isfinite().all()):
            raise RequestError(f"{label} has weights that are not finite")


def _layer_setting(config: Mapping[str, Any], setting: str, pattern: str, name: str) -> Any:
    """Return a layer's rank or alpha; as in PEFT, the first pattern that ends its name decides."""
    value = config.get(setting, 8)  # PEFT's default for both
    try:
        for key, special in (config.get(pattern) or {}).items():
            if _ending(key)(name):
                value = special
                break
    except (AttributeError, re.error):
        raise RequestError(f"{pattern} in adapter_config.json is no mapping of patterns") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RequestError(f"{setting} {value!r} of layer {name!r} is not a number")
    return value


@cache
def _ending(key: str) -> Callable[[str], object]:
    """Return the test whether a pattern ends a layer's name."""
    return re.compile(ENDING.format(key)).match


def _pattern(values: dict[str, Any]) -> dict[str, Any]:
    """Return PEFT's pattern for values by layer; empty if all layers agree."""
    if len(set(values.values())) == 1:
        return {}
    # PEFT takes the first key that ends a layer's name, so longer names come first.
    return {name: values[name] for name in sorted(values, key=len, reverse=True)}
