"""The sweep directory: written atomically, resumed exactly."""

import io
import json
import math
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock, Timeout

from rankwise.errors import RankwiseError, RequestError, some

if TYPE_CHECKING:
    from rankwise.decide.evidence import ChanceLoss
    from rankwise.engine.trial import FinishedTrial
    from rankwise.lora.adapter import Adapter

PARTIAL = ".partial-"
RANK_PATTERN_DIRECTORY = "best-rank-pattern"
DECIDING = ("margin", "confidence")  # settings that change no trial, at most which are run
UNTRAINED = "untrained.json"  # what the base does without an adapter
COSTS = (
    "trainable_params",
    "adapter_bytes",
    "train_seconds",
    "pack_seconds",
    "pack_size",
    "peak_memory_bytes",
)
EVIDENCE_COLUMNS = ("rank", "seed", "learning_rate", "example_id", "loss", "score", "diverged")


class SweepStore:
    """One sweep's directory, held by one process at a time.

    A trial exists once its directory has its final name: it is written beside that name and then renamed. So a sweep
    that is killed at any moment leaves whole trials only, and goes on with the next one.

    Args:
        directory: the sweep directory, made if it is not there.
        request: what defines the sweep: its settings and the fingerprints of model and data. An existing directory
            must have been made by the same request, or hold no trial yet.
        extend: allow the request to have more seeds than the directory's. A trial depends on nothing but itself, so
            each is what it would be in a sweep that had them from the start.

    Raises:
        RequestError: the directory cannot be used, belongs to another request, or is in use.
    """

    def __init__(
        self, directory: Path, request: Mapping[str, Any], *, extend: bool = False
    ) -> None:
        self.directory = directory
        self.trials_directory = directory / "trials"
        refuse_bad_directory(directory)
        try:
            self.trials_directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(directory / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RequestError(
                f"out {str(directory)!r} is in use by another running sweep"
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"out {str(directory)!r} cannot be written: {reason}") from None
        for leftover in self.trials_directory.glob(f"{PARTIAL}*"):
            shutil.rmtree(leftover)
        try:
            begun = is_begun(directory, request, extend)
            if not begun:
                (directory / UNTRAINED).unlink(missing_ok=True)
            if not begun or extend:
                self.write_json("sweep.json", request)
        except RankwiseError:
            self._lock.release()
            raise

    def __enter__(self) -> "SweepStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def add(self, finished: "FinishedTrial", settings: Mapping[str, Any]) -> None:
        """Keep a finished trial: ``config.json``, ``metrics.jsonl``, ``evidence.parquet`` and ``adapter/``.

        Raises:
            RankwiseError: the directory cannot be written; trials kept before stay as they are.
        """
        from safetensors.torch import save

        trial = finished.trial
        weights = save(finished.adapter, metadata={"format": "pt"})
        summary: dict[str, Any] = {
            "step": len(finished.steps),
            "diverged": finished.diverged,
            "eval_loss": None if finished.diverged else float(finished.evidence["loss"].mean()),
            "eval_score": None if finished.diverged else float(finished.evidence["score"].mean()),
            **_over_tokens(finished.evidence),
            "trainable_params": finished.trainable_params,
            "adapter_bytes": len(weights),
            "train_seconds": finished.train_seconds,
            "pack_seconds": finished.pack_seconds,
            "pack_size": finished.pack_size,
            "eval_seconds": finished.eval_seconds,
            "peak_memory_bytes": finished.peak_memory_bytes,
        }
        config = {
            "rank": trial.rank,
            "seed": trial.seed,
            "learning_rate": trial.learning_rate,
            "lora_alpha": trial.lora_alpha,
            "use_rslora": trial.use_rslora,
            **(
                {"truncated_from": trial.truncated_from} if trial.truncated_from is not None else {}
            ),
            **settings,
        }
        lines = [json.dumps(_finite(row)) for row in (*finished.steps, summary)]
        files = {
            "config.json": _json_bytes(config),
            "metrics.jsonl": ("\n".join(lines) + "\n").encode(),
            "evidence.parquet": _evidence_bytes(finished),
            "adapter/adapter_config.json": _json_bytes(finished.adapter_config),
            "adapter/adapter_model.safetensors": weights,
        }
        partial = self.trials_directory / f"{PARTIAL}{trial.name}"
        try:
            for name, content in files.items():
                _write(partial / name, content)
            os.replace(partial, self.trials_directory / trial.name)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RankwiseError(
                f"cannot write {str(self.trials_directory / trial.name)!r}: {error.strerror or error}; "
                f"the {len(self.trial_names())} complete trials are kept, and the same command goes on from there"
            ) from None

    def trial_names(self) -> list[str]:
        """Return the names of the complete trials."""
        return [trial.name for trial in _trials(self.directory)]

    def adapter_directory(self, trial_name: str) -> Path:
        """Return where a trial's adapter lies, in PEFT's format.

        Raises:
            RankwiseError: it is not there.
        """
        path = self.trials_directory / trial_name / "adapter"
        if not path.is_dir():
            raise _unreadable(path.parent, "it has no directory adapter/")
        return path

    def evidence(self) -> pd.DataFrame:
        """Return the held-out results of all complete trials, a row each per example (columns EVIDENCE_COLUMNS)."""
        return read_evidence(self.directory)

    def summaries(self) -> pd.DataFrame:
        """Return what was measured of each complete trial, a row each."""
        return read_summaries(self.directory)

    def seconds_spent(self) -> float:
        """Return the seconds that all complete trials took to train and to score."""
        trials = self.summaries()
        if trials.empty:
            return 0.0
        return float((trials["pack_seconds"] / trials["pack_size"] + trials["eval_seconds"]).sum())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the sweep, None if it is not there."""
        return read_json(self.directory / name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the sweep in one piece."""
        write_whole(self.directory / name, _json_bytes(content))

    def hand_over(self, trial_name: str | None) -> Path | None:
        """Make ``best/`` a copy of a trial's adapter, or remove it where no rank was selected.

        Raises:
            RankwiseError: the adapter is not there, or ``best/`` cannot be written.
        """
        best, partial = self.directory / "best", self.directory / f"{PARTIAL}best"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            if trial_name is not None:
                shutil.copytree(self.adapter_directory(trial_name), partial)
            if best.exists():
                shutil.rmtree(best)
            if trial_name is None:
                return None
            os.replace(partial, best)
        except OSError as error:
            raise RankwiseError(
                f"cannot write {str(best)!r}: {error.strerror or error}; complete trials are kept"
            ) from None
        return best

    def offer(self, rank_pattern: "Adapter | None") -> None:
        """Write the cut that is offered beside ``best/``, or remove an earlier one where there is none."""
        from rankwise.lora.files import write_adapter

        shutil.rmtree(self.directory / RANK_PATTERN_DIRECTORY, ignore_errors=True)
        if rank_pattern is not None:
            write_adapter(rank_pattern, self.directory / RANK_PATTERN_DIRECTORY)


def refuse_bad_directory(directory: Path) -> None:
    """Refuse a path that cannot be a sweep directory.

    Raises:
        RequestError: it is a file, or a directory with other things in it.
    """
    if directory.exists() and not directory.is_dir():
        raise RequestError(
            f"out {str(directory)!r} is a file; allowed is a directory, new or of the same sweep"
        )
    if directory.is_dir() and not (directory / "sweep.json").exists():
        others = [
            path.name
            for path in directory.iterdir()
            if path.name != "trials" and path.name[0] != "."
        ]
        if others:
            raise RequestError(
                f"out {str(directory)!r} holds other files ({others[0]}) and no sweep; name a new or empty directory"
            )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of a sweep in one piece: there is the old one or the new one, never a part.

    Raises:
        RankwiseError: it cannot be written.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        _write(partial, content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RankwiseError(
            f"cannot write {str(path)!r}: {error.strerror or error}; complete trials are kept"
        ) from None


def read_evidence(directory: Path) -> pd.DataFrame:
    """Return the evidence of a sweep directory's complete trials (columns EVIDENCE_COLUMNS).

    Raises:
        RankwiseError: a trial's file is missing or broken.
    """
    frames = []
    for trial in _trials(directory):
        try:
            frames.append(pd.read_parquet(trial / "evidence.parquet"))
        except (OSError, ValueError) as error:  # pyarrow's are one or the other
            raise _unreadable(trial, f"evidence.parquet: {error}") from None
    if not frames:
        return pd.DataFrame({name: [] for name in EVIDENCE_COLUMNS})
    return pd.concat(frames, ignore_index=True)


def read_summaries(directory: Path) -> pd.DataFrame:
    """Return a row for each complete trial: its config and the last line of its metrics.

    Raises:
        RankwiseError: a trial's file is missing or broken.
    """
    rows = [
        {"name": trial.name, **read_trial_config(trial), **read_metrics(trial)[-1]}
        for trial in _trials(directory)
    ]
    return pd.DataFrame(rows)


def read_trial_config(trial: Path) -> dict[str, Any]:
    """Return what a trial was, of its directory.

    Raises:
        RankwiseError: its ``config.json`` is missing or broken.
    """
    try:
        config = read_json(trial / "config.json")
    except RequestError as error:
        raise _unreadable(trial, error) from None
    if not isinstance(config, dict):
        raise _unreadable(
            trial, "it has no config.json" if config is None else "config.json is no JSON object"
        )
    return config


def read_metrics(trial: Path) -> list[dict[str, Any]]:
    """Return a row for each step of a trial, of its directory, and last the summary.

    Raises:
        RankwiseError: its ``metrics.jsonl`` is missing or broken.
    """
    try:
        rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise _unreadable(trial, f"metrics.jsonl: {error}") from None
    whole = rows and all(isinstance(row, dict) for row in rows)
    if not whole or "trainable_params" not in rows[-1]:  # the summary is written last
        raise _unreadable(trial, "metrics.jsonl ends before its last line")
    return rows


def _unreadable(trial: Path, reason: object) -> RankwiseError:
    return RankwiseError(
        f"trial {str(trial)!r} cannot be read: {' '.join(str(reason).split()).rstrip('.')}; "
        "delete its directory, and the sweep's own command trains it again"
    )


def known_chance_loss(directory: Path) -> "ChanceLoss | None":
    """Return the held-out loss that says nothing is learnt, as a sweep found it: a guess's, or the untrained base's."""
    chance = (read_json(directory / "sweep.json") or {}).get("task", {}).get("chance_loss")
    if chance is not None:
        return float(chance)
    base = read_json(directory / UNTRAINED) or {}
    if "loss" in base:
        return pd.Series(base["loss"], index=base["example_id"], dtype=float)
    return base.get("held_out_loss")  # all that an earlier rankwise kept


def trained_at(summaries: pd.DataFrame) -> int | None:
    """Return the rank that was trained where the others are cut from it; None where every rank was trained.

    Raises:
        RequestError: there are cuts, and trials of several ranks.
    """
    if "truncated_from" not in summaries or summaries["truncated_from"].isna().all():
        return None
    ranks = sorted(map(int, summaries.loc[summaries["truncated_from"].isna(), "rank"].unique()))
    if len(ranks) > 1:
        raise RequestError(
            f"results hold cuts beside adapters trained at ranks {some(ranks)}: which rank to keep and which to train "
            "at are two questions; give the results of one strategy at a time"
        )
    return ranks[0]


def rank_costs(summaries: pd.DataFrame, rank: int, learning_rate: float | None) -> dict[str, Any]:
    """Return a rank's measured costs, from its trials at its own learning rate; none where it has no trial."""
    trials = summaries[summaries["rank"] == rank]
    if learning_rate is not None:
        trials = trials[trials["learning_rate"] == learning_rate]
    if trials.empty:
        return {}
    sizes = {
        "trainable_params": int(trials["trainable_params"].max()),
        "adapter_bytes": int(trials["adapter_bytes"].max()),
    }
    if (
        "truncated_from" in trials and trials["truncated_from"].notna().all()
    ):  # nothing was trained at this rank
        return sizes
    return {
        **sizes,
        "train_seconds": float(trials["train_seconds"].median()),
        "pack_seconds": float(trials["pack_seconds"].median()),
        "pack_size": int(trials["pack_size"].max()),
        "peak_memory_bytes": int(trials["peak_memory_bytes"].max()),
    }


def read_histories(directory: Path) -> pd.DataFrame:
    """Return training losses of a sweep directory's complete trials, a row per step.

    Columns ``rank``, ``seed``, ``learning_rate``, ``step``, ``train_loss`` (nats).

    Raises:
        RankwiseError: a trial's file is missing or broken.
    """
    rows = []
    for trial in _trials(directory):
        config = read_trial_config(trial)
        key = {name: config[name] for name in ("rank", "seed", "learning_rate")}
        rows += [
            {**key, "step": line["step"], "train_loss": line["train_loss"]}
            for line in read_metrics(trial)
            if "train_loss" in line
        ]
    return pd.DataFrame(rows, columns=["rank", "seed", "learning_rate", "step", "train_loss"])


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, None if there is no such file.

    Raises:
        RequestError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} cannot be read: {error}") from None


def _trials(directory: Path) -> list[Path]:
    return sorted(
        path for path in (directory / "trials").glob("*") if not path.name.startswith(".")
    )


def is_begun(directory: Path, request: Mapping[str, Any], extend: bool) -> bool:
    """Whether a directory holds the sweep of a request, which then goes on.

    A sweep that was refused, or stopped, before it had a trial leaves its place to any other.

    Raises:
        RequestError: it holds trials of another request.
    """
    known = read_json(directory / "sweep.json")
    if known is None:
        return False
    try:
        _refuse_difference(directory, known, request, extend)
    except RequestError:
        if _trials(directory):
            raise
        return False
    return True


def _refuse_difference(
    directory: Path, known: Mapping[str, Any], request: Mapping[str, Any], extend: bool
) -> None:
    """Refuse to go on with a sweep under another request; versions and hardware may differ."""
    for part in ("settings", "fingerprints"):
        for name in {**known.get(part, {}), **request[part]}:
            before, now = known.get(part, {}).get(name), request[part].get(name)
            more_seeds = name == "seeds" and isinstance(before, int) and now > before
            if before == now or (more_seeds and extend):
                continue
            values = (
                f"is {now}, was {before}" if part == "settings" else "is not the same as before"
            )
            remedy = (
                "; or add the new ones with --extend"
                if more_seeds
                else _decide_anew(directory, known, request)
            )
            raise RequestError(
                f"out {str(directory)!r} holds a sweep with another request: {name} {values}; "
                f"give the same request, or another out{remedy}"
            )


def _decide_anew(directory: Path, known: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """Return the command that decides from a sweep's trials where nothing but how to decide differs, else nothing."""
    before, now = known.get("settings", {}), request["settings"]
    differing = {name for name in {**before, **now} if before.get(name) != now.get(name)}
    if (
        not differing
        or not differing <= set(DECIDING)
        or known.get("fingerprints") != request["fingerprints"]
    ):
        return ""
    options = " ".join(
        f"--{name} {now[name]}" for name in DECIDING
    )  # all: the sweep's may not be the defaults
    return f"; or decide anew without training: rankwise analyze {shlex.quote(str(directory))} {options}"


def _over_tokens(evidence: pd.DataFrame) -> dict[str, float]:
    """Return means over all tokens, where examples have numbers of tokens: a long example then counts for more.

    The exact match is that of greedy decoding without decoding: where every token of a completion is the model's first
    choice behind the ones before it, decoding writes just those tokens, and elsewhere it leaves them at the first miss.
    """
    if "tokens" not in evidence or evidence.empty:
        return {}
    share = evidence["tokens"] / evidence["tokens"].sum()  # (N,)
    loss = float((share * evidence["loss"]).sum())
    return {
        "eval_token_loss": loss,
        "eval_perplexity": math.exp(min(loss, 700.0)),
        "eval_token_accuracy": float((share * evidence["score"]).sum()),
        "eval_exact_match": float((evidence["score"] == 1.0).mean()),
    }


def _evidence_bytes(finished: "FinishedTrial") -> bytes:
    trial = finished.trial
    frame = finished.evidence
    if finished.diverged:  # one row stands for the trial
        frame = pd.DataFrame({"example_id": [-1], "loss": [float("nan")], "score": [0.0]})
    frame = frame.assign(
        rank=trial.rank,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        diverged=finished.diverged,
    )
    buffer = io.BytesIO()
    more = [name for name in frame.columns if name not in EVIDENCE_COLUMNS]
    frame[[*EVIDENCE_COLUMNS, *more]].to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what JSON cannot say (NaN, infinity) by null."""
    return {
        key: None
        if isinstance(value, float) and (value != value or abs(value) == float("inf"))
        else value
        for key, value in row.items()
    }


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
