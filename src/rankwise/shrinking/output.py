"""Files of a shrunk adapter: the adapter and its model card, the decision, the report."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rankwise.errors import RankwiseError
from rankwise.escaping import front_matter, markdown
from rankwise.lora.files import companions, write_adapter
from rankwise.models.files import public_name
from rankwise.report.shrink_page import write_shrink_page
from rankwise.shrinking.cuts import Cut
from rankwise.shrinking.outcome import AdapterDecision, ShrinkResult, vllm_rank
from rankwise.store.digests import json_bytes
from rankwise.store.durable import write_whole

CARD = "README.md"


def write_result(
    result: ShrinkResult, handed: Sequence[Sequence[Cut]], directory: Path
) -> ShrinkResult:
    """Write everything into a new directory; return the result with the places.

    Args:
        result: the result.
        handed: truncations to write of each adapter.
        directory: new or empty.

    Raises:
        RankwiseError: a file cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RankwiseError(f"cannot write {str(directory)!r}: {error.strerror}") from None
    written = []
    names = _folder_names([decision.adapter for decision in result.decisions])
    for name, decision, cuts in zip(names, result.decisions, handed, strict=True):
        for cut in cuts:
            place = directory / (f"{name}-per-layer" if cut.per_layer else name)
            beside = [path for path in companions(decision.adapter)[0] if path.name != CARD]
            write_adapter(cut.adapter, place, beside)
            write_whole(place / CARD, _card(result, decision, cut).encode())
            written.append(place)
    result = replace(result, directory=directory, written=tuple(written))
    document = result.as_dict()
    write_whole(directory / "decision.json", json_bytes(document))
    write_shrink_page(document, directory / "report.html")
    return result


def _folder_names(adapters: Sequence[Path]) -> list[str]:
    """Return a folder's name for each adapter: ``adapter`` if there is one alone."""
    if len(adapters) == 1:
        return ["adapter"]
    names: list[str] = []
    for path in adapters:
        parts = path.absolute().parts
        name = parts[-1] if parts[-1] != "adapter" or len(parts) < 2 else parts[-2]
        name = re.sub(r"[^\w.-]", "-", name)
        number = sum(each == name or each.startswith(f"{name}-") for each in names)
        names.append(f"{name}-{number + 1}" if number else name)
    return names


def _card(result: ShrinkResult, decision: AdapterDecision, cut: Cut) -> str:
    """Return the model card of a truncated adapter."""
    from huggingface_hub import ModelCardData

    base = public_name(result.base)
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        tags=["lora", "rankwise"],
        model_name=f"LoRA rank {cut.rank}, truncated from rank {decision.own_rank}",
    )
    kind = "a rank for each layer, at the size of rank" if cut.per_layer else "rank"
    row = next(row for row in decision.table if row.kind == cut.kind)
    training = "nothing was trained"
    if cut.healed and decision.healing is not None:
        healing = decision.healing
        training = (
            f"then trained for {healing.steps} steps at rank {cut.rank} (learning rate "
            f"{healing.learning_rate:g}, batches of 8, {healing.examples:,} examples)"
        )
    # The last part of a path alone: others need not know where things lay here.
    adapter = markdown("/".join(decision.adapter.parts[-2:]))
    lines = [
        f"# LoRA adapter of {kind} {cut.rank}, truncated from rank {decision.own_rank}\n",
        f"Truncated by `rankwise shrink` from {adapter} by the singular values of each "
        f"layer's update; {training}.\n",
        f"On {row.examples:,} held-out examples ({markdown(result.data)}) its loss is "
        f"{row.difference:+.4f} {result.unit} from that of the adapter it was cut from, at most "
        f"{row.upper:+.4f}; the margin was {result.margin:.3g} at "
        f"{100 * result.confidence:.4g} % confidence.\n",
        f"- base model: {markdown(base or Path(result.base).name)}",
        f"- parameters of A and B: {decision.full.params:,} before, {cut.params:,} now",
        f"- vLLM: `--max-lora-rank {vllm_rank(cut.largest_rank)}`",
    ]
    return front_matter(data.to_dict()) + "\n".join(lines) + "\n"
