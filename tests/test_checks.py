from pathlib import Path

import pytest

from rankwise.checks import check_matching_ends, check_path, check_text, parse_bytes
from rankwise.errors import RequestError
from rankwise.sweeps.config import SweepConfig


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24e9),
        ("16GiB", 2**34),
        ("1.5 gib", 1.5 * 2**30),
        ("25769803776", 24 * 2**30),
        (100_000, 1e5),
        ("512MB", 512e6),
    ],
)
def test_memory_sizes_are_read_in_bytes(text: object, size: float) -> None:
    assert parse_bytes("memory", text) == size


@pytest.mark.parametrize("text", ["", "0", "-4GB", "many", "24 GX", "GB", True, "7b", "24 kB"])
def test_values_that_are_not_memory_sizes_are_refused(text: object) -> None:
    with pytest.raises(RequestError, match=r"memory .* 100kB at least$"):
        parse_bytes("memory", text)


@pytest.mark.parametrize(
    ("number", "meant"),
    [("24", "24GB"), (24, "24GB"), (1.5, "1.5GB"), ("16000", "16000MB"), (99_999, "99999MB")],
)
def test_bare_small_number_is_refused_with_the_unit_it_probably_lacks(
    number: object, meant: str
) -> None:
    with pytest.raises(RequestError, match=rf"bytes: did you mean {meant}\?"):
        parse_bytes("memory", number)
    with pytest.raises(RequestError, match=r"max_memory .*did you mean"):
        SweepConfig(max_memory=number)  # type: ignore[arg-type]


LAYER = "model.layers.10.self_attn.qqqqqqqqqqqqqqqqqqqqqqqqqqqqqq_proj"


@pytest.mark.parametrize("pattern", ["(.*q+)+x", r"([a-z]+\.?)*\d$", ".*.*.*.*.*.*.*.*.*.*x"])
def test_a_pattern_that_never_ends_is_refused(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwise.checks.MATCHING_SECONDS", 1.0)
    with pytest.raises(RequestError, match="takes forever to match") as caught:
        check_matching_ends("rank_pattern", ["q_proj", "(v|k)+_proj", pattern], [LAYER])
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("pattern", ["(q|v)_proj", r"(.*\.)?(layers\.\d+)+\.x$", "(", "(q"])
def test_other_patterns_pass(pattern: str) -> None:
    check_matching_ends("rank_pattern", [pattern], [LAYER] * 1000)


@pytest.mark.parametrize("value", ["caf\udce9.csv", Path("caf\udce9.csv")])
def test_a_name_that_is_not_utf_8_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match=r"data 'caf\\udce9.csv' is not UTF-8; rename it"):
        check_path("data", value)
    with pytest.raises(RequestError, match=r"model '.udce9' is not UTF-8"):
        check_text("model", "\udce9")
