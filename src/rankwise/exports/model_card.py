"""The model card: ``README.md`` beside the chosen adapter, with the evidence for its rank."""

from collections.abc import Sequence
from pathlib import Path

from rankwise.decide import Decision
from rankwise.exports.recipe import CAUSAL_LM, TrainingSetup
from rankwise.formatting import decision_sentences, rank_cells, signed
from rankwise.models.auto import AUTO_CLASSES
from rankwise.store.directory import write_whole
from rankwise.store.records import SweepRecord
from rankwise.tasks.samples import MINILM_HUB_ID

PIPELINES = {"SEQ_CLS": "text-classification", CAUSAL_LM: "text-generation"}


def write_card(
    directory: Path,
    decision: Decision,
    setup: TrainingSetup,
    sweep: SweepRecord,
) -> None:
    """Write ``README.md`` into the directory of an adapter.

    Args:
        directory: of the adapter.
        decision: that chose it.
        setup: how it was trained.
        sweep: the request.

    Raises:
        RankwiseError: it cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankwise.exports", "."),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    score = sweep.task.score
    header, rows = _table(decision, score)
    body = environment.get_template("card.md.j2").render(
        decision=decision,
        task=sweep.task,
        sentences=decision_sentences(decision, score),
        header=header,
        rows=rows,
        training=_training(setup, sweep),
        code=_code(setup, sweep.task.label_names),
        versions=sweep.environment.versions,
        command=sweep.command,
    )
    front = _front_matter(decision, setup, sweep)
    write_whole(directory / "README.md", f"---\n{front}\n---\n{body}".encode())


def _front_matter(decision: Decision, setup: TrainingSetup, sweep: SweepRecord) -> str:
    """Return the hub's metadata as YAML, with the tags that PEFT gives an adapter of its own."""
    from huggingface_hub import EvalResult, ModelCardData

    # The hub knows no directories or files, and refuses a card that names one.
    score = sweep.task.score
    name = MINILM_HUB_ID if sweep.paths.model is None else setup.base_model
    base = None if Path(name).exists() else name
    pipeline = PIPELINES[setup.task_type]
    results = None
    if decision.test is not None:
        data = sweep.task.name
        results = [
            EvalResult(
                task_type=pipeline,
                dataset_type=data,
                dataset_name=data,
                dataset_split="test",
                metric_type=kind,
                metric_value=round(value, 4),
            )
            for kind, value in ((score, decision.test.score), ("loss", decision.test.loss))
        ]
    return ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag=pipeline,
        tags=[
            *([f"base_model:adapter:{base}"] if base else []),
            "lora",
            "rankwise",
            "transformers",
        ],
        metrics=[score],
        model_name=f"LoRA rank {decision.rank}, {sweep.task.name}",
        eval_results=results,
    ).to_yaml()


def _table(decision: Decision, score: str) -> tuple[str, list[str]]:
    """Return the head and the rows of the ranks' table in Markdown, the chosen rank in bold."""
    rows = []
    for row, texts in zip(decision.table, rank_cells(decision, score), strict=True):
        bound = "" if row.worst_difference is None else signed(row.worst_difference)
        rows.append({**texts, "seeds": str(row.seeds), "at most above the best": bound})
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    header = f"| {' | '.join(names)} |\n|{' ---: |' * len(names)}"
    lines = []
    for row, texts in zip(decision.table, rows, strict=True):
        bold = "**" if row.rank == decision.rank else ""
        lines.append(
            f"| {' | '.join(f'{bold}{texts[name]}{bold}' if texts[name] else '' for name in names)} |"
        )
    return header, lines


def _training(setup: TrainingSetup, sweep: SweepRecord) -> list[tuple[str, str]]:
    """Return how the adapter was trained, name by name."""
    task, fingerprints = sweep.task, sweep.fingerprints
    named = setup.target_modules
    targets = named if isinstance(named, str) else ", ".join(named)
    rows = [
        ("base model", f"`{setup.base_model}`, fingerprint `{fingerprints.model[:16]}`"),
        ("data", f"{task.name}, fingerprint `{fingerprints.data[:16]}`"),
        ("examples", f"{task.train_examples} training, {task.held_out_examples} held-out, "
                     f"{task.test_examples} test"),
        ("rank", str(setup.rank) if setup.keep_rank is None else f"{setup.rank}, cut to {setup.keep_rank} by SVD"),
        ("lora_alpha", f"{setup.lora_alpha:g}" + (" (rsLoRA)" if setup.use_rslora else "")),
        ("target modules", targets),
        ("trained in full", ", ".join(setup.modules_to_save) or "nothing"),
        ("base precision", "fp32" if setup.quantization == "none" else setup.quantization),
        ("learning rate", f"{setup.learning_rate:g}, linear, rising over {setup.warmup_steps} of {setup.steps} steps"),
        ("epochs", str(setup.epochs)),
        ("batch size", str(setup.batch_size)),
        ("longest input", f"{setup.max_length} tokens"),
        ("optimizer", "AdamW, no weight decay, no dropout"),
        ("seed", str(setup.seed)),
    ]  # fmt: skip
    return rows


def _code(setup: TrainingSetup, label_names: Sequence[str]) -> str:
    """Return Python that loads the adapter onto its base, quantised as in the sweep."""
    kind, (place, both) = AUTO_CLASSES[setup.task_type], setup.loading
    given = "".join(f", {key}={value!r}" for key, value in both.items())
    options = given
    if not label_names and setup.task_type != CAUSAL_LM:  # a regression's head gives one number
        options += ", num_labels=1"
    if label_names:
        options += f", num_labels={len(label_names)}, id2label={dict(enumerate(label_names))!r}"
    imports, bits = f"AutoTokenizer, {kind}", ""
    if setup.bits:  # an adapter belongs to the base in the bits that it was trained on
        imports = f"{imports}, BitsAndBytesConfig"
        bits = f"bits = BitsAndBytesConfig({', '.join(f'{key}={value!r}' for key, value in setup.bits.items())})\n"
        options += ", quantization_config=bits"
    return (
        f"from peft import PeftModel\n"
        f"from transformers import {imports}\n\n"
        f"base = {place!r}\n"
        f"{bits}"
        f"tokenizer = AutoTokenizer.from_pretrained(base{given})\n"
        f"model = {kind}.from_pretrained(base{options})\n"
        f'model = PeftModel.from_pretrained(model, ".")  # the directory of this file\n'
    )
