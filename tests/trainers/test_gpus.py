"""Which GPU each of the trials that run at once may use."""

import pytest
import torch

from rankwise.errors import RequestError
from rankwise.trainers.gpus import gpu_environments


def test_each_trial_at_once_has_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert gpu_environments(2) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert gpu_environments(1) == [{}]  # it may use all of them
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,3")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in gpu_environments(2)] == ["GPU-a", "3"]
    with pytest.raises(RequestError, match="trials_at_once 3: allowed is at most 2"):
        gpu_environments(3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_environments(3) == [{}, {}, {}]
