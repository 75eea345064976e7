import sys

import pytest

from rankwise.errors import RequestError
from rankwise.trainers.command import parse_command


def test_values_go_to_their_places_and_no_shell_reads_them() -> None:
    command = parse_command(f"{sys.executable} 'my train.py' -r={{rank}} {{out}} '$HOME;ls'")
    assert command.fill({"rank": "8", "out": "/a b/{rank}"}) == [
        sys.executable, "my train.py", "-r=8", "/a b/{rank}", "$HOME;ls",
    ]  # fmt: skip


def test_a_config_tells_all_values() -> None:
    command = parse_command(f"{sys.executable} train.py {{config}}")
    assert all(command.has(name) for name in ("rank", "out", "seed", "learning_rate"))
    assert not command.has("train_data")


def test_braces_that_are_no_placeholders_stay() -> None:
    command = parse_command(f"""{sys.executable} -r {{rank}} {{out}} '{{"a": 1}}'""")
    assert command.fill({"rank": "8", "out": "o"})[-1] == '{"a": 1}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python t.py {rnak} {out}", ["{rnak}", "did you mean 'rank'", "{learning_rate}"]),
        ("python t.py {out}", ["{rank}", "the same rank"]),
        ("python t.py {rank}", ["{out}", "would not find"]),
        ("python 't.py {rank} {out}", ["no closing quotation"]),
        ("no-such-program {rank} {out}", ["'no-such-program' not found"]),
        ("{out} {rank}", ["'{out}' not found"]),
    ],
)
def test_a_command_that_cannot_be_a_sweep_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        parse_command(text)
    for word in words:
        assert word in str(caught.value)
