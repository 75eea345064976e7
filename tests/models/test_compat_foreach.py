import torch

from rankwise.models.compat_foreach import foreach_add, foreach_copy, foreach_scale


def test_lists_give_what_a_loop_gives() -> None:
    torch.manual_seed(0)
    sources = [torch.randn(2, 3), torch.randn(5), torch.randn(4, 4)]
    whole = torch.zeros(3, 6, 6, dtype=torch.bfloat16)
    targets = [whole[0, :2, :3], whole[1, 0, :5], whole[2, :4, :4]]
    foreach_copy(targets, sources)
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target, source.bfloat16())
    assert whole.count_nonzero() == 6 + 5 + 16

    sums = [source.clone() for source in sources]
    foreach_add(sums, sources)
    foreach_scale(sums, [0.5, 2.0, 1.0])
    for total, source, factor in zip(sums, sources, [0.5, 2.0, 1.0], strict=True):
        torch.testing.assert_close(total, 2 * factor * source)


def test_empty_lists_do_nothing() -> None:
    foreach_copy([], [])
    foreach_add([], [])
    foreach_scale([], [])
