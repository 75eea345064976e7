import pytest

from rankwise.errors import RequestError
from rankwise.planning.memory.devices import DEVICES, find_device


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("t4", "T4"),
        ("RTX 4090", "RTX-4090"),
        ("a100_80gb", "A100-80GB"),
        ("NVIDIA L4", "L4"),
        ("CPU", "cpu"),
    ],
)
def test_device_is_found_in_any_spelling(text: str, name: str) -> None:
    assert find_device(text).name == name


@pytest.mark.parametrize(
    ("text", "hint"), [("RTX-4091", "RTX-4090"), ("A100", "A100-40GB"), ("MI300", "MI300X")]
)
def test_unknown_device_is_refused_with_the_nearest_name(text: str, hint: str) -> None:
    with pytest.raises(RequestError, match=f"did you mean '{hint}'"):
        find_device(text)


def test_catalogue_is_plausible() -> None:
    for device in DEVICES.values():
        assert device.total_bytes is not None
        assert 10 * 2**30 < device.total_bytes < 300 * 2**30
        assert device.workspace_bytes == 2 * (
            32 * 2**20 if device.capability >= 90 else 8320 * 1024
        )
