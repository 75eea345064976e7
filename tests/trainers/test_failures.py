from pathlib import Path

import pytest

from rankwise.errors import RankwiseError
from rankwise.trainers.failures import Failures


def test_the_log_of_a_trial_that_was_stopped_is_no_part_of_its_failure() -> None:
    failures = Failures({}, lambda name: None, lambda text: None)
    slow = "it took longer than trial_timeout, 90 minutes"
    assert failures.add("r2", f"{slow}: 12%|## | loss of batch") == []
    assert failures.add("r4", f"{slow}: saving") == ["r2"]
    assert failures.add("r8", "its command was killed by SIGKILL: 12%") == []
    assert failures.add("r16", "its command was killed by SIGTERM: 12%") == []
    assert failures.add("r32", "its command was killed by SIGKILL: saving") == ["r8"]


def test_failures_that_differ_in_numbers_and_paths_are_alike() -> None:
    taken: list[str] = []
    notes: list[str] = []
    failures = Failures({"r2": "killed by SIGKILL"}, taken.append, notes.append)
    assert failures.add("r4", "exit code 1: tried 20.5 GiB in /a/b") == []
    assert failures.add("r8", "it left no adapter") == []
    assert len(notes) == 2
    others = failures.add("r16", "exit code 1: tried 41 GiB in /a/c")
    assert others == ["r4"]
    error = failures.stop(others, "r16", Path("log.txt"))
    assert "trials r4 and r16 failed alike" in str(error)
    assert "see log.txt" in str(error)
    assert taken == ["r4"]
    assert failures.add("r4", "exit code 2: tried 20.5 GiB in /a/b") == ["r16"]  # code as well
    with pytest.raises(RankwiseError):
        raise error


def test_a_long_reason_leaves_room_for_the_path(tmp_path: Path) -> None:
    failures = Failures({}, lambda name: None, lambda text: None)
    failures.add("r8", "its command ended with exit code 1: " + "word " * 100 + "use float32")
    log = tmp_path / "trials/.failed-r8/log.txt"
    message = str(failures.stop(["r4"], "r8", log))
    assert f"word use float32; see {log}; once" in message
    assert "exit code 1: word" in message


@pytest.mark.parametrize("length", [100, 120, 150])
def test_a_long_path_stays_whole(length: int) -> None:
    failures = Failures({}, lambda name: None, lambda text: None)
    failures.add("r8-lr0.002-seed0", "its command ended with exit code 1: " + "word " * 100)
    log = Path(f"/{length * 'x'}/log.txt")
    message = str(failures.stop(["r4-lr0.002-seed0"], "r8-lr0.002-seed0", log))
    assert f"see {log}" in message
    assert "its command ended with exit code 1: word" in message
