"""A machine that has run out of something: one line with what, what is kept and what helps."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.cli.exhausted import explain_exhausted
from rankwise.errors import RequestError, ran_out, reading

FAILURES = [
    (MemoryError(), "memory", "--max-length"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory", "--max-length"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory", "--max-length"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory", "--max-length"),
    (RuntimeError("can't start new thread"), "threads", "OMP_NUM_THREADS=1"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "threads", "ulimit -u"),
    (OSError(errno.EMFILE, "Too many open files", "a.csv"), "file handles at 'a.csv'", "ulimit -n"),
    (OSError(errno.ENOSPC, "No space left on device", "out/x"), "disk space at 'out/x'", "--out"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "what", "setting"), FAILURES)
def test_the_line_names_what_ran_out_and_a_setting(
    error: Exception, what: str, setting: str
) -> None:
    line = explain_exhausted(error, "sweep")
    assert line is not None
    assert line.startswith(f"out of {what}; complete trials are kept")
    assert setting in line
    assert "trials" not in (explain_exhausted(error, "inspect") or "trials")
    if "memory" not in what:
        with pytest.raises(type(error)), reading("data 'a.csv'"):  # it is no fault of the file
            raise error


def test_other_failures_are_none_of_these() -> None:
    for error in (ValueError("x"), OSError(errno.ENOENT, "no file"), RequestError("y")):
        assert ran_out(error) is None and explain_exhausted(error, "sweep") is None


@pytest.mark.parametrize(("free", "line"), [(2**20, "out of memory; "), (2**40, None)])
def test_a_reader_that_asks_for_much_is_judged_by_what_is_free(
    free: int, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.models.main_memory.free_main_memory", lambda: free)
    with pytest.raises(RequestError) as caught, reading("data 'a.csv'"):
        raise MemoryError("Unable to allocate 8.00 EiB")
    said = explain_exhausted(caught.value, "sweep")
    assert said is None if line is None else str(said).startswith(line)


LIMITED = """
import resource, sys
from rankwise.cli import program
import rankwise.analysis.analysis
BEFORE
sys.argv[1:] = ["analyze", "results.csv"]
program()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the process")
@pytest.mark.parametrize(
    ("before", "what"),
    [
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))", "file handles"),
        (
            "import psutil\n"
            "used = psutil.Process().memory_info().vms\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))",
            "memory",
        ),
    ],
)
def test_a_command_under_a_limit_ends_with_one_line(before: str, what: str, tmp_path: Path) -> None:
    rows = [f"{rank},{seed},{example},0.5" for rank in (4, 8) for seed in (0, 1) for example in range(100_000)]  # fmt: skip
    (tmp_path / "results.csv").write_text("rank,seed,example_id,loss\n" + "\n".join(rows))
    script = LIMITED.replace("BEFORE", before)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"rankwise: out of {what}"), done.stderr
    assert done.stderr.count("\n") == 1
