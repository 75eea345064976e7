"""``rankwise shrink``: the smallest rank that trained adapters can be truncated to."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Unpack

from rankwise.errors import RequestError
from rankwise.lora.adapter import factor_pairs
from rankwise.lora.files import check_new_directory
from rankwise.models.compat import quiet_libraries
from rankwise.models.files import check_model_files
from rankwise.settings import requested_config
from rankwise.shrinking import words
from rankwise.shrinking.config import ShrinkConfig, ShrinkSettings
from rankwise.shrinking.cuts import common_base, decompose, ranks_below
from rankwise.shrinking.held_out import HeldOut, base_for, encode_held_out, read_held_out
from rankwise.shrinking.outcome import AdapterDecision, ShrinkResult

if TYPE_CHECKING:
    from rankwise.lora.adapter import Adapter
    from rankwise.lora.spectra import Spectrum
    from rankwise.models.base_model import BaseModel
    from rankwise.shrinking.cuts import Cut


class Notes(Protocol):
    """A receiver of notes for people."""

    def note(self, text: str) -> None:
        """Receive a sentence."""


def shrink(
    adapters: ShrinkConfig | Path | str | Sequence[Path | str],
    *,
    progress: Notes | None = None,
    **settings: Unpack[ShrinkSettings],
) -> ShrinkResult:
    """Find the smallest rank that trained adapters can be truncated to, and show it.

    Each is truncated to smaller ranks by its singular values, and the truncations are scored on
    held-out examples together with the adapter. A rank holds if its loss is shown to be within the
    margin of the adapter's own. Scoring stops as soon as the answer stands. Nothing is trained,
    unless ``heal`` names training data (`rankwise.shrinking.healing`).

    Args:
        adapters: directory of an adapter as PEFT saves it, or several; or the whole request.
        progress: receives notes.
        **settings: fields of `ShrinkConfig`.

    Raises:
        RequestError: the request was wrong; nothing was written.
        RankwiseError: something failed while running.

    Example:
        >>> import rankwise
        >>> result = rankwise.shrink("adapter", data="held-out.csv")  # doctest: +SKIP
        >>> result.rank  # doctest: +SKIP
        4
    """
    if isinstance(adapters, ShrinkConfig):
        config = requested_config(ShrinkConfig, adapters, settings, "shrink")
    else:
        named = [adapters] if isinstance(adapters, Path | str) else list(adapters)
        config = requested_config(ShrinkConfig, None, {**settings, "adapters": named}, "shrink")
    if config.out is not None:
        check_new_directory(config.out)
    spectra = [decompose(path) for path in config.adapters]
    _check_ranks(config, [each.largest_rank for each in spectra])
    whole = [each.adapter for each in spectra]
    _check_per_layer(config, whole)
    name = str(config.model or common_base(config.adapters, whole))
    check_model_files(name)
    task = read_held_out(config, name, whole[0])
    with quiet_libraries():
        from rankwise.models.base_model import Loading, load_base
        from rankwise.models.device import precision_name
        from rankwise.shrinking.output import write_result
    base = load_base(
        name,
        task.objective,
        "all-linear",
        [],
        config.quantization,
        Loading(config.device, config.precision, config.trust_remote_code),
    )
    held_out = encode_held_out(task, base, config.max_length)
    labels = [f"adapter {str(path)!r}" for path in config.adapters]
    bases = [
        base_for(base, each.adapter, label) for each, label in zip(spectra, labels, strict=True)
    ]
    note = (lambda text: None) if progress is None else progress.note
    for text in held_out.notes:
        note(text)
    decisions, handed = _judge(config, spectra, bases, held_out, note)
    result = ShrinkResult(
        base=name,
        device=str(base.device),
        precision=precision_name(base.compute_dtype),
        data=task.name,
        held_out_examples=len(held_out.encoded),
        unit=task.objective.unit,
        score=task.objective.score,
        margin=config.margin,
        confidence=config.confidence,
        decisions=tuple(decisions),
        serving=(),
    )
    heads = any(each.config.get("modules_to_save") for each in whole)
    result = replace(result, serving=tuple(words.serving(decisions, result.rank, heads)))
    return result if config.out is None else write_result(result, handed, config.out)


def _judge(
    config: ShrinkConfig,
    spectra: "Sequence[Spectrum]",
    bases: "Sequence[BaseModel]",
    held_out: HeldOut,
    note: Callable[[str], None],
) -> "tuple[list[AdapterDecision], list[list[Cut]]]":
    """Return the decision about each adapter, and the truncations to hand over."""
    from rankwise.shrinking.comparison import Comparison
    from rankwise.shrinking.healing import Healer, read_training_data, refuse_unhealable
    from rankwise.shrinking.scoring import Scorer

    data = None
    if config.heal is not None:
        refuse_unhealable([each.adapter for each in spectra], bases)
        data = read_training_data(config, held_out.task, bases[0], spectra[0].adapter)
        if data.shared:
            note(
                f"{data.shared} examples of {str(config.heal)!r} are held-out examples too and are "
                "left out of the training"
            )
    decisions, handed = [], []
    for path, decomposed, base in zip(config.adapters, spectra, bases, strict=True):
        scorer = Scorer(base, decomposed.adapter, held_out.encoded, config.engine)
        if scorer.obstacle is not None:
            note(f"the reference engine scores {str(path)!r}, because {scorer.obstacle}")
        healer = None if data is None else Healer(config, scorer, data)
        comparison = Comparison(decomposed, config, scorer, held_out.task.chance_loss, healer)
        comparison.run()
        decision, cuts = comparison.decide(path)
        decisions.append(decision)
        handed.append(cuts)
    return decisions, handed


def _check_ranks(config: ShrinkConfig, own: Sequence[int]) -> None:
    """Refuse ranks of which none is below an adapter's own."""
    for path, rank in zip(config.adapters, own, strict=True):
        if not ranks_below(rank, config.ranks):
            asked = "" if config.ranks is None else f"; none of {list(config.ranks)} is below it"
            raise RequestError(f"adapter {str(path)!r} has rank {rank}, nothing to cut{asked}")


def _check_per_layer(config: ShrinkConfig, adapters: "Sequence[Adapter]") -> None:
    """Refuse a rank for each layer where stacked experts must share one."""
    for path, adapter in zip(config.adapters, adapters, strict=True):
        stacked = (pair.layer for pair in factor_pairs(adapter) if pair.experts > 1)
        if config.per_layer and (layer := next(stacked, None)):
            raise RequestError(
                f"per_layer: the experts stacked in {layer} of adapter {str(path)!r} share one "
                "rank; leave --per-layer out"
            )
