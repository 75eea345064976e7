"""Free main memory is the least of what the machine, control groups and limits leave."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rankwise.models.main_memory import free_main_memory

MIB = 2**20


def group(place: Path, names: tuple[str, str, str], limit: str, used: int, files: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / names[0]).write_text(f"{limit}\n")
    (place / names[1]).write_text(f"{used * MIB}\n")
    (place / "memory.stat").write_text(f"anon 1\n{names[2]} {files * MIB}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def machine(root: Path, groups: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    return root


def test_a_container_of_800_mib_is_not_taken_for_the_machine(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    group(root / "sys/fs/cgroup", V2, str(800 * MIB), 300, 20)
    assert free_main_memory(root) == 520 * MIB


def test_a_group_above_may_leave_less(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/user/job\n")
    group(root / "sys/fs/cgroup/user/job", V2, "max", 10, 0)
    group(root / "sys/fs/cgroup/user", V2, str(400 * MIB), 150, 0)
    assert free_main_memory(root) == 250 * MIB


def test_version_1_also_where_the_container_sees_its_group_as_the_top(tmp_path: Path) -> None:
    root = machine(tmp_path, "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    group(root / "sys/fs/cgroup/memory", V1, str(300 * MIB), 100, 5)
    assert free_main_memory(root) == 205 * MIB


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    group(root / "sys/fs/cgroup", V2, str(100 * MIB), 120, 0)
    assert free_main_memory(root) == 0


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:memory:/\n0::/\n")
    group(root / "sys/fs/cgroup/memory", V1, str(2**63 - 4096), 100, 0)
    available = psutil.virtual_memory().available
    assert free_main_memory(root) == pytest.approx(available, abs=500 * MIB)
    assert free_main_memory(tmp_path / "no-linux") == pytest.approx(available, abs=500 * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of an address space")
def test_a_limit_of_the_shell_counts() -> None:
    script = (
        "import resource, psutil\n"
        "from rankwise.models.main_memory import free_main_memory\n"
        "used = psutil.Process().memory_info().vms\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + 100 * {MIB}, resource.RLIM_INFINITY))\n"
        "print(free_main_memory())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert 50 * MIB < int(done.stdout) <= 100 * MIB, done.stderr
