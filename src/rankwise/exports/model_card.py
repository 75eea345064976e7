"""The model card: ``README.md`` beside the recommended adapter, with the evidence for its rank."""

from collections.abc import Sequence
from pathlib import Path

from rankwise.decide import Decision
from rankwise.decide.summary import decision_sentences, rank_cells
from rankwise.exports.recipe import CAUSAL_LM, Recipe
from rankwise.formatting import signed, sure
from rankwise.models.auto import AUTO_CLASSES
from rankwise.store.directory import write_whole
from rankwise.store.records import SweepRecord
from rankwise.tasks.samples import MINILM_HUB_ID

PIPELINES = {"SEQ_CLS": "text-classification", CAUSAL_LM: "text-generation"}


def write_card(directory: Path, decision: Decision, recipe: Recipe, sweep: SweepRecord) -> None:
    """Write ``README.md`` into the directory of an adapter.

    Raises:
        RankwiseError: The file cannot be written.
    """
    import jinja2

    text = Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8")
    template = jinja2.Template(text, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    header, rows = _rank_table(decision, sweep.task.score)
    body = template.render(
        decision=decision,
        task=sweep.task,
        sentences=decision_sentences(decision, sweep.task.score),
        provisional=recipe.provisional,
        sure_is_known=any(row.confidence_within_margin for row in decision.table),
        header=header,
        rows=rows,
        training=_training_rows(recipe, sweep),
        code=loading_code(recipe, sweep.task.label_names),
        versions=sweep.environment.versions,
        command=sweep.command,
    )
    front_matter = _front_matter(decision, recipe, sweep)
    write_whole(directory / "README.md", f"---\n{front_matter}\n---\n{body}".encode())


def _front_matter(decision: Decision, recipe: Recipe, sweep: SweepRecord) -> str:
    """Return metadata for the hub as YAML, with the tags that PEFT gives its adapters."""
    from huggingface_hub import EvalResult, ModelCardData

    # The hub refuses a card that names a directory or a file as its base model.
    name = MINILM_HUB_ID if sweep.paths.model is None else recipe.model.name
    base = None if Path(name).exists() else name
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
    return ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag=pipeline,
        tags=[*base_tags, "lora", "rankwise", "transformers"],
        metrics=[task.score],
        model_name=f"LoRA rank {decision.recommended}{mark}, {task.name}",
        eval_results=results,
    ).to_yaml()


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
    header = f"| {' | '.join(columns)} |\n|{' ---: |' * len(columns)}"
    rows = []
    for row, texts in zip(decision.table, cells, strict=True):
        values = [texts[name] for name in columns]
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
    return [
        ("base model", f"`{recipe.model.name}`, fingerprint `{fingerprints.model[:16]}`"),
        ("data", f"{task.name}, fingerprint `{fingerprints.data[:16]}`"),
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


def loading_code(recipe: Recipe, label_names: Sequence[str]) -> str:
    """Return Python that loads the adapter onto its base, quantised as in the sweep.

    ``label_names`` are the classes; a regression and a language model have none.
    """
    auto_class = AUTO_CLASSES[recipe.model.task_type]
    place, options = recipe.model.load_arguments
    for_both = "".join(f", {name}={value!r}" for name, value in options.items())
    for_model, imports, definition = for_both, f"AutoTokenizer, {auto_class}", ""
    if label_names:
        for_model += f", num_labels={len(label_names)}, id2label={dict(enumerate(label_names))!r}"
    elif not recipe.model.is_causal_lm:  # a regression's head returns one number
        for_model += ", num_labels=1"
    if recipe.bitsandbytes_arguments:  # an adapter fits the quantisation that it was trained on
        arguments = [f"{name}={value!r}" for name, value in recipe.bitsandbytes_arguments.items()]
        imports += ", BitsAndBytesConfig"
        definition = f"bits = BitsAndBytesConfig({', '.join(arguments)})\n"
        for_model += ", quantization_config=bits"
    return (
        f"from peft import PeftModel\n"
        f"from transformers import {imports}\n\n"
        f"base = {place!r}\n"
        f"{definition}"
        f"tokenizer = AutoTokenizer.from_pretrained(base{for_both})\n"
        f"model = {auto_class}.from_pretrained(base{for_model})\n"
        f'model = PeftModel.from_pretrained(model, ".")  # the directory of this file\n'
    )
