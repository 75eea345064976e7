import torch

from rankwise.engine.peak_memory import optimizer_states, peak_live_bytes

KIB = 1024


def test_the_peak_is_the_largest_sum_alive_at_once() -> None:
    start = torch.ones(KIB)  # 4 KiB

    def step() -> None:
        twice = start * 2  # 8 KiB alive
        more = torch.cat([twice, twice])  # 16 KiB alive
        del twice  # 12
        more.view(2, KIB).t()  # a view adds no bytes
        more + 1  # 20 KiB alive

    assert peak_live_bytes(step, [start]) == 20 * KIB


def test_shared_storage_counts_once() -> None:
    base = torch.zeros(4 * KIB)
    assert peak_live_bytes(lambda: None, [base, base[:10], base.view(2, -1)]) == 16 * KIB


def test_a_step_of_a_linear_layer_needs_what_a_count_by_hand_says() -> None:
    layer = torch.nn.Linear(64, 32, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(16, 64)

    def step() -> None:
        layer(x).sum().backward()
        optimizer.step()

    weights, inputs, output, scalar = 4 * 64 * 32, 4 * 16 * 64, 4 * 16 * 32, 4
    # At the peak: weights, input, the gradient of the weights, the sum and the gradient of the sum,
    # which is expanded without copying. The output is no longer needed once it is summed.
    measured = peak_live_bytes(step, [layer.weight, x])
    assert (
        weights + inputs + weights <= measured <= weights + inputs + weights + output + 4 * scalar
    )


def test_adam_keeps_two_moments_and_a_step_count_for_each_parameter() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    assert optimizer_states(optimizer) == []
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert sum(state.numel() for state in optimizer_states(optimizer)) == 2 * (6 + 2) + 2
