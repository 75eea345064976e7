"""The model card: ``README.md`` beside the recommended adapter, with the evidence for its rank."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwise.decide import Decision
from rankwise.decide.summary import decision_sentences, rank_cells
from rankwise.escaping import front_matter, markdown, markdown_fence, python, without_directories
from rankwise.exports.recipe import CAUSAL_LM, Recipe
from rankwise.formatting import signed, sure
from rankwise.models.auto import AUTO_CLASSES
from rankwise.models.files import public_name
from rankwise.store.durable import write_synced
from rankwise.store.records import Fingerprints, SweepRecord
from rankwise.tasks.samples import MINILM_HUB_ID

ELSEWHERE = "path/to/base"  # a reader has the base model in a place of their own
PIPELINES = {"SEQ_CLS": "text-classification", CAUSAL_LM: "text-generation"}


def write_card(directory: Path, decision: Decision, recipe: Recipe, sweep: SweepRecord) -> None:
    """Write ``README.md`` into the directory of an adapter.

    Raises:
        OSError: The file cannot be written.
    """
    import jinja2

    sentences = decision_sentences(decision, sweep.task.score)
    versions = sweep.environment.versions
    code = loading_code(recipe, sweep.task.label_names, _hub_base(recipe, sweep) or ELSEWHERE)
    text = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    template = jinja2.Template(text, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    header, rows = _rank_table(decision, sweep.task.score)
    body = template.render(
        decision=decision,
        task=markdown(sweep.task.name),
        sentences=[markdown(without_directories(sentence)) for sentence in sentences],
        provisional=recipe.provisional,
        sure_is_known=any(row.confidence_within_margin for row in decision.table),
        header=header,
        rows=rows,
        training=[(name, markdown(value)) for name, value in _training_rows(recipe, sweep)],
        code=markdown_fence(code, "python"),
        versions={markdown(name): markdown(version) for name, version in versions.items()},
    )
    head = front_matter(_metadata(decision, recipe, sweep))
    write_synced(directory / "README.md", f"{head}{body}".encode())


def _metadata(decision: Decision, recipe: Recipe, sweep: SweepRecord) -> dict[str, Any]:
    """Return metadata for the hub, with the tags that PEFT gives its adapters."""
    from huggingface_hub import EvalResult, ModelCardData

    # The hub refuses a card that names a directory or a file as its base model.
    base = _hub_base(recipe, sweep)
    base_tags = [f"base_model:adapter:{base}"] if base else []
    task, pipeline = sweep.task, PIPELINES[recipe.model.task_type]
    results = None
    if decision.test is not None:
        results = [
            EvalResult(
                pipeline, task.name, task.name, metric, round(value, 4), dataset_split="test"
            )
            for metric, value in ((task.score, decision.test.score), ("loss", decision.test.loss))
        ]
    mark = " (provisional)" if decision.provisional else ""
    data: dict[str, Any] = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag=pipeline,
        tags=[*base_tags, "lora", "rankwise", "transformers"],
        metrics=[task.score],
        model_name=f"LoRA rank {decision.recommended}{mark}, {task.name}",
        eval_results=results,
    ).to_dict()
    return data


def _hub_base(recipe: Recipe, sweep: SweepRecord) -> str | None:
    """Return the hub id of the base model; None for a directory or a file."""
    return public_name(MINILM_HUB_ID if sweep.paths.model is None else recipe.model.name)


def _rank_table(decision: Decision, score: str) -> tuple[str, list[str]]:
    """Return header and rows of the table of ranks in Markdown; the recommended rank is bold."""
    cells = []
    for row, texts in zip(decision.table, rank_cells(decision, score), strict=True):
        bound = "" if row.worst_difference is None else signed(row.worst_difference)
        known = row.confidence_within_margin
        cell = sure(known, decision.confidence) if known else ""
        first = {"rank": texts["rank"], "sure that it is within the margin": cell}
        last = {"seeds": str(row.seeds), "at most above the best": bound}
        cells.append({**first, **texts, **last})
    columns = [name for name in cells[0] if any(texts[name] for texts in cells)]
    header = f"| {' | '.join(map(markdown, columns))} |\n|{' ---: |' * len(columns)}"
    rows = []
    for row, texts in zip(decision.table, cells, strict=True):
        values = [markdown(texts[name]) for name in columns]
        if row.rank == decision.recommended:
            values = [f"**{value}**" if value else "" for value in values]
        rows.append(f"| {' | '.join(values)} |")
    return header, rows


def _training_rows(recipe: Recipe, sweep: SweepRecord) -> list[tuple[str, str]]:
    task, fingerprints = sweep.task, sweep.fingerprints
    adapter, optimizer, quantization = recipe.adapter, recipe.optimizer, recipe.model.quantization
    targets, rank = adapter.target_modules, str(adapter.rank)
    if adapter.truncate_to is not None:
        rank = f"{adapter.rank}, truncated to {adapter.truncate_to} by SVD"
    if adapter.healing is not None:
        rank += f", then trained for {adapter.healing[0]} steps at {adapter.healing[1]:g}"
    held_out_and_test = f"{task.held_out_examples} held-out, {task.test_examples} test"
    warmup = f"rising over {optimizer.warmup_steps} of {optimizer.steps} steps"
    base = _hub_base(recipe, sweep) or Path(recipe.model.name).name
    return [
        ("base model", f"{base}{_weights(fingerprints)}"),
        ("data", f"{task.name}, fingerprint {fingerprints.data[:16]}"),
        ("examples", f"{task.train_examples} training, {held_out_and_test}"),
        ("rank", rank),
        ("lora_alpha", f"{adapter.lora_alpha:g}" + (" (rsLoRA)" if adapter.use_rslora else "")),
        ("target modules", targets if isinstance(targets, str) else ", ".join(targets)),
        ("trained in full", ", ".join(adapter.modules_to_save) or "nothing"),
        ("base precision", optimizer.precision if quantization == "none" else quantization),
        ("learning rate", f"{optimizer.learning_rate:g}, {optimizer.lr_scheduler}, {warmup}"),
        ("epochs", str(optimizer.epochs)),
        ("batch size", str(optimizer.batch_size)),
        ("longest input", f"{recipe.data.max_length} tokens"),
        ("optimizer", f"{optimizer.optimizer}, weight decay {optimizer.weight_decay:g}"),
        ("gradients", f"clipped to norm {optimizer.max_grad_norm:g}"),
        ("dropout", f"{adapter.dropout:g}"),
        ("seed", str(optimizer.seed)),
    ]


def loading_code(recipe: Recipe, label_names: Sequence[str], base: str) -> str:
    """Return Python that loads the adapter onto its base, quantised as in the sweep.

    Args:
        recipe: how the adapter was trained.
        label_names: the classes; a regression and a language model have none.
        base: hub id or directory of the base model.
    """
    auto_class = AUTO_CLASSES[recipe.model.task_type]
    _, options = recipe.model.load_arguments
    for_both = _arguments(options)
    for_model, imports, definition = for_both, f"AutoTokenizer, {auto_class}", ""
    if label_names:
        names = {"num_labels": len(label_names), "id2label": dict(enumerate(label_names))}
        for_model += _arguments(names)
    elif not recipe.model.is_causal_lm:  # a regression's head returns one number
        for_model += ", num_labels=1"
    if recipe.bitsandbytes_arguments:  # an adapter fits the quantisation that it was trained on
        arguments = _arguments(recipe.bitsandbytes_arguments).removeprefix(", ")
        imports += ", BitsAndBytesConfig"
        definition = f"bits = BitsAndBytesConfig({arguments})\n"
        for_model += ", quantization_config=bits"
    return (
        f"from peft import PeftModel\n"
        f"from transformers import {imports}\n\n"
        f"base = {python(base)}\n"
        f"{definition}"
        f"tokenizer = AutoTokenizer.from_pretrained(base{for_both})\n"
        f"model = {auto_class}.from_pretrained(base{for_model})\n"
        f'model = PeftModel.from_pretrained(model, ".")  # the directory of this file\n'
    )


def _arguments(values: Mapping[str, Any]) -> str:
    """Return keyword arguments of a call, each after a comma."""
    return "".join(f", {name}={python(value)}" for name, value in values.items())


def _weights(fingerprints: Fingerprints) -> str:
    """Return the digest of the base's weights, shortened, or its commit on a hub."""
    weights = fingerprints.weights
    if weights is None or weights.startswith("hub:"):
        _, _, commit = (weights or "").partition("@")
        return f", commit {commit[:16]}" if commit else ""
    return f", weights {weights[:16]}"
