"""A machine that has run out of something: one line with what, what is kept and what helps."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise.cli.exhausted import explain_exhausted
from rankwise.errors import ExhaustedError, RequestError, ran_out, reading

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
    with pytest.raises(ExhaustedError) as caught, reading("data 'a.csv'"):  # no fault of the file
        raise ImportError("it is raised from another") from error
    said = str(caught.value)
    assert said.startswith(f"out of {what.split(' at')[0]}: data 'a.csv'; ") and setting in said
    assert caught.value.exit_code == 1 and not isinstance(caught.value, RequestError)
    assert explain_exhausted(caught.value, "inspect") == said
    assert "trials are kept" in (explain_exhausted(caught.value, "sweep") or "")


def test_other_failures_are_none_of_these() -> None:
    for error in (
        ValueError("x: 'out of memory'"),
        OSError(errno.ENOENT, "no file"),
        RequestError("y"),
    ):
        assert ran_out(error) is None and explain_exhausted(error, "sweep") is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 EiB for an array with shape (2, 3)"),
        MemoryError("malloc of size 4611686018427387904 failed"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4611686018427387904 bytes. Error code 12"),
    ],
)  # fmt: skip
def test_a_file_that_asks_for_more_than_the_machine_has_is_refused(error: Exception) -> None:
    with (
        pytest.raises(RequestError, match=r"data 'a.csv': .*allo") as caught,
        reading("data 'a.csv'"),
    ):
        raise error
    assert explain_exhausted(caught.value, "sweep") is None


@pytest.mark.parametrize("size", ["2.00 MiB", "2097152 bytes"])
def test_less_than_the_machine_has_is_no_fault_of_a_file(size: str) -> None:
    with pytest.raises(ExhaustedError), reading("data 'a.csv'"):
        raise MemoryError(f"Unable to allocate {size}")


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
