"""The HTML report: one self-contained page, built from the files of a sweep directory."""

from pathlib import Path
from typing import Any

from rankwise.decide.metrics import is_share, value_range
from rankwise.formatting import interval, plain_bytes, seconds, share, signed, training_time
from rankwise.report import figures
from rankwise.report.compare_sweeps import read_finished_sweep
from rankwise.store.directory import read_evidence, read_summaries, write_whole


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a sweep directory and return its path.

    Raises:
        RequestError: the directory holds no finished sweep.
        RankwiseError: the report cannot be written.
    """
    import jinja2

    request, decision = read_finished_sweep(directory)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rankwise.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        bytes=plain_bytes, seconds=seconds, signed=signed, interval=interval, share=share
    )
    task, table = request["task"], decision["table"]
    score = task["score"]
    page = environment.get_template("report.html.j2").render(
        sweep=request,
        decision=decision,
        trials=_trial_rows(directory),
        plots=figures.report_plots(decision, read_evidence(directory), task["loss"], score),
        plotly=figures.plotly_script(),
        compared_title=figures.COMPARED_TITLE,
        rates_title=figures.RATES_TITLE,
        percent=is_share(score),
        possible_losses=value_range("loss", [row["loss_mean"] for row in table]),
        possible_scores=value_range(score, [row["score_mean"] for row in table]),
        training_time=training_time(table),
    )
    path = directory / "report.html"
    write_whole(path, page.encode())
    return path


def _trial_rows(directory: Path) -> list[dict[str, Any]]:
    trials = read_summaries(directory).sort_values(["rank", "learning_rate", "seed"])
    return [{str(key): value for key, value in row.items()} for row in trials.to_dict("records")]
