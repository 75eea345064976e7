"""Whether a directory may hold a sweep, and whether the sweep in it is of the same request."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rankwise.errors import ExhaustedError, RankwiseError, RequestError
from rankwise.models.fingerprint import earlier_digest
from rankwise.store import records
from rankwise.store.digests import SUMS
from rankwise.store.records import SweepRecord
from rankwise.store.trial_files import read_trial_config


def refuse_bad_directory(directory: Path) -> None:
    """Refuse a path that cannot be a sweep directory.

    Raises:
        RequestError: the path is a file, or a directory with other things in it.
    """
    out, advice = f"out {str(directory)!r}", "name a new or empty directory"
    if directory.exists() and not directory.is_dir():
        raise RequestError(f"{out} is a file; {advice}")
    if not directory.is_dir() or (directory / "sweep.json").exists():
        return
    if any((trial / SUMS).exists() for trial in records.trial_directories(directory)):
        return  # a sweep that lost its sweep.json
    for name in sorted(path.name for path in directory.iterdir()):
        if name != "trials" and not name.startswith("."):
            raise RequestError(f"{out} holds other files ({name}) and no sweep; {advice}")


def can_resume(directory: Path, record: SweepRecord, *, extend: bool) -> bool:
    """Return whether a directory holds a sweep of the same request.

    A sweep without a complete trial does not block its directory for another request. Without a
    record of the request, the digests that its trials carry decide.

    Raises:
        RequestError: the directory holds trials of another request, or trials and no record of
            their request, which do not all carry this one's digest.
    """
    before = records.read_sweep(directory)
    if before is None:
        trials = records.trial_directories(directory)
        for trial in trials:
            _refuse_foreign(trial, record.digest)
        return bool(trials)
    change = _first_change(directory, before, record, extend=extend)
    if change is not None and records.trial_directories(directory):
        raise RequestError(f"out {str(directory)!r} holds a sweep with another request: {change}")
    return change is None


def _refuse_foreign(trial: Path, request: str) -> None:
    """Refuse a trial whose directory has no ``sweep.json``, unless it carries the request."""
    try:
        read_trial_config(trial, request)
    except ExhaustedError:
        raise
    except RankwiseError:
        raise RequestError(
            f"out {str(trial.parents[1])!r} has no sweep.json, and its trial {trial.name} is not "
            "of this request; name another directory"
        ) from None


def _first_change(
    directory: Path, before: SweepRecord, now: SweepRecord, *, extend: bool
) -> str | None:
    """Return the first difference between two requests with its remedy; None if they are equal.

    Paths, versions and hardware may differ.
    """
    advice = "give the same request, or another out"
    settings = _differences(before.settings, now.settings)
    files = _differences(asdict(before.fingerprints), asdict(now.fingerprints))
    if before.fingerprints.tokens is None:  # an earlier version, which had other digests
        files = {name: files[name] for name in ("data", "eval_data") if name in files}
        settings |= _differences({"model": before.paths.model}, {"model": now.paths.model})
        if _is_another_model(before.fingerprints.model, now.paths.model):
            files["model"] = (before.fingerprints.model, None)
    for name, (old, new) in settings.items():
        if name == "seeds" and new > old:
            if extend:
                continue
            advice += "; or add the new ones with --extend"
        elif set(settings) <= set(records.DECISION_SETTINGS) and not files:
            # All options: the sweep's values need not be the command's defaults.
            options = f"--margin {now.settings['margin']} --confidence {now.settings['confidence']}"
            if now.settings.get("no_prior"):
                options += " --no-prior"
            command = f"rankwise analyze {shlex.quote(str(directory))} {options}"
            advice += f"; or decide again without training: {command}"
        return f"{name} is {new}, was {old}; {advice}"
    if files:
        return f"its {next(iter(files)).replace('_', ' ')} changed; {advice}"
    return None


def _is_another_model(before: str | None, model: str | None) -> bool:
    """Return whether a model lacks the digest that an earlier version kept, if it kept one.

    A built-in model (None) and one that the user's trainer keeps to itself are not compared.
    """
    return None not in (before, model) and before not in ("none", earlier_digest(str(model)))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value of every entry that changed."""
    pairs = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}
