"""The command line as a person meets it: a process, its output and its exit code."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rankwise import __version__
from rankwise.cli import COMMANDS, main
from rankwise.errors import RankwiseError, RequestError


def rankwise(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=wide, timeout=300)


def run_here(
    capfd: pytest.CaptureFixture[str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, where the libraries are loaded already."""
    capfd.readouterr()
    with patch.dict(os.environ, COLUMNS="120"):
        code = main([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())


def refuse(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a bad request, in this process, and return the one line that it must answer with."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("rankwise: ")
    assert err.count("\n") == 1
    return err


HEAVY = {"torch", "transformers", "pandas", "numpy", "peft"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("main(['--help'])", "sweep"),
        ("main(['sweep', '--help'])", "--target-modules"),
        ("main(['plan', '--help'])", "--gradient-checkpointing"),
        ("main(['--version'])", f"rankwise {__version__}"),
        ("import rankwise; print(dir(rankwise))", "run_rank_comparison"),
    ],
)
def test_help_version_and_import_load_no_large_library(code: str, words: str) -> None:
    script = (
        f"import sys; from rankwise.cli import main\ntry: {code}\nexcept SystemExit: pass\n"
        f"heavy = {HEAVY} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_the_package_runs_as_a_module() -> None:
    assert rankwise("--version").stdout == f"rankwise {__version__}\n"


def test_every_command_has_a_module_of_its_name_and_a_line_of_help() -> None:
    page = rankwise("--help").stdout
    for name, summary in COMMANDS.items():
        assert import_module(f"rankwise.cli.{name}").COMMAND.description
        assert summary in page
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["swep"], "'swep' is not a command (did you mean 'sweep'?)"),
        (["--ranks", "4,8"], "'--ranks' is not a command"),
    ],
)
def test_what_is_no_command_is_refused(arguments: list[str], words: str, capfd: Any) -> None:
    assert words in refuse(capfd, *arguments)


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (RankwiseError("it\nbroke"), 1, "rankwise: it broke\n"),
        (RequestError("wrong"), 2, "rankwise: wrong\n"),
        (FileNotFoundError(2, "No such file", "a.csv"), 1, "rankwise: No such file: a.csv\n"),
        (KeyboardInterrupt(), 130, "rankwise: interrupted; complete trials are kept"),
        (SystemExit(143), 143, "rankwise: terminated (SIGTERM); complete trials are kept"),
        (KeyError("x"), 1, "rankwise: KeyError: 'x'; this is a fault of rankwise"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(
    failure: BaseException, code: int, words: str, monkeypatch: Any, capfd: Any
) -> None:
    def fail(*requests: object) -> None:
        raise failure

    command = import_module("rankwise.cli.sweep").COMMAND
    monkeypatch.setattr("rankwise.cli.sweep.COMMAND", replace(command, run=fail))
    assert main(["sweep"]) == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(words) and err.count("\n") == 1


@pytest.mark.parametrize("place", [0, 1])
def test_debug_shows_the_traceback_with_its_cause(
    place: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("[1,")
    words = ["analyze", str(tmp_path / "results.json")]
    words.insert(2 * place, "--debug")
    assert main(words) == 2
    err = capfd.readouterr().err
    assert "JSONDecodeError" in err and "direct cause" in err
    assert err.splitlines()[-1].startswith("rankwise: ")
