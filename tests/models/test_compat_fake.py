import torch

from rankwise.models.compat_fake import tensors_without_numbers


def test_tensors_without_numbers_are_on_a_cpu_and_mix_with_others() -> None:
    with tensors_without_numbers():
        large = torch.empty(1 << 20, 1 << 20)  # 4 TiB, had it numbers
    assert large.device.type == "cpu"
    assert (large[:4, :8] @ torch.ones(8, 3)).shape == (4, 3)
