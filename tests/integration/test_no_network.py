"""No command makes a connection: every socket is recorded, and a sweep ends without any network."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECORD = """
import json, sys
EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
          "socket.gethostbyname", "socket.gethostbyaddr", "socket.bind", "urllib.Request")
seen = []
def record(event, arguments):
    if event in EVENTS:
        seen.append([event, repr(arguments[1:])])
sys.addaudithook(record)
from rankwise.cli import main
code = main(sys.argv[2:])
open(sys.argv[1], "w").write(json.dumps([code, seen]))
"""


def connections(place: Path, *command: object) -> list[object]:
    """Run a command and return the connections that it, or a library, asked for."""
    words = [sys.executable, "-c", RECORD, place / "seen.json", *command]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, seen = json.loads((place / "seen.json").read_text())
    assert code == 0, done.stderr
    return seen


def sweep(model: Path, data: Path, out: Path) -> list[object]:
    return [
        "sweep", "--model", model, "--data", data, "--out", out, "--ranks", "2,4", "--seeds", 1,
        "--learning-rate", "5e-3", "--margin", "0.5",
    ]  # fmt: skip


def test_the_recorder_sees_a_connection(tmp_path: Path) -> None:
    script = RECORD.replace("code = main(sys.argv[2:])", """
import socket
code = 0
try: socket.create_connection(("127.0.0.1", 9))
except OSError: pass
""")  # fmt: skip
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "seen.json")], check=True)
    _, seen = json.loads((tmp_path / "seen.json").read_text())
    assert {event for event, _ in seen} == {"socket.getaddrinfo", "socket.connect"}


def test_analyze_connects_to_nothing(tmp_path: Path) -> None:
    rows = [f"{rank},{seed},0.5{seed}" for rank in (4, 8) for seed in range(3)]
    (tmp_path / "results.csv").write_text("\n".join(["rank,seed,loss", *rows]))
    assert connections(tmp_path, "analyze", tmp_path / "results.csv") == []


@pytest.mark.slow
def test_a_sweep_and_a_plan_connect_to_nothing(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert connections(tmp_path, *sweep(tiny_model, reviews, out)) == []
    assert connections(tmp_path, "plan", tiny_model, "--seq-len", 32) == []
    assert connections(tmp_path, "inspect", out / "best") == []
    assert connections(tmp_path, "report", out) == []


def can_unshare() -> bool:
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-rn", "true"]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare(), reason="needs unshare, and the right to use it")
def test_a_sweep_ends_in_a_network_namespace_of_its_own(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    words = ["unshare", "-rn", sys.executable, "-m", "rankwise"]
    words += [str(word) for word in sweep(tiny_model, reviews, tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/report.html").exists()
