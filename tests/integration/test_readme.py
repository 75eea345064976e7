"""The commands, Python and links of the README and the docs."""

import re
import shlex
from pathlib import Path

import pytest

from rankwise.cli import main
from tests.conftest import make_reviews

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for _, block in BLOCKS for line in block.splitlines() if line.startswith("rankwise ")
]
PYTHON = [block for language, block in BLOCKS if language == "python"]


@pytest.fixture
def here(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the model and the data that the README speaks of."""
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to(tiny_model)
    make_reviews(120).to_csv(tmp_path / "reviews.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smaller(text: str) -> str:
    """Take ranks that the tiny model allows."""
    return text.replace("4,8,16,32", "1,2").replace("[4, 8, 16, 32]", "[1, 2]")


@pytest.mark.parametrize("command", [line for line in COMMANDS if "--data" in line])
def test_the_command_runs(here: Path, command: str) -> None:
    arguments = shlex.split(smaller(command))[1:]
    assert main([*arguments, "--learning-rate", "1e-3", "--seeds", "1"]) == 0
    assert (here / "my-sweep" / "report.html").exists()


@pytest.mark.parametrize("block", PYTHON)
def test_the_python_runs(here: Path, block: str) -> None:
    exec(smaller(block), {"__name__": "__main__"})
    assert (here / "my-sweep" / "decision.json").exists()


def test_there_are_commands_and_python_to_run() -> None:
    assert any("--data" in line for line in COMMANDS)
    assert PYTHON


def test_links_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_docs_link_to_what_exists() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (
                f"{page.name}: {target}"
            )
        for path in re.findall(r"`((?:tests|benchmarks|examples|src)/[\w/.]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
