import torch

from rankwise.models.storages import StorageTracker


class Log(StorageTracker):
    """Writes down every allocation and release as text."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.count = 0

    def allocated(self, tensor: torch.Tensor) -> int | None:
        if tensor.dtype is torch.bool:
            return None
        self.count += 1
        self.events.append(f"+{self.count}")
        return self.count

    def freed(self, number: int) -> None:
        self.events.append(f"-{number}")


def test_allocations_and_releases_come_in_order() -> None:
    log = Log()
    with log.tracking():
        first = torch.ones(4)
        second = first + 1
        del first
        assert log.number(second) == 2
        del second
    assert log.events == ["+1", "+2", "-1", "-2"]


def test_a_view_shares_the_storage_of_its_base() -> None:
    log = Log()
    with log.tracking():
        whole = torch.ones(4)
        view = whole[:2]
        assert log.number(view) == log.number(whole) == 1
        del whole
        assert log.events == ["+1"]
        del view
    assert log.events == ["+1", "-1"]


def test_ignored_storages_are_never_reported() -> None:
    log, before = Log(), torch.ones(4)
    log.ignore(before)
    with log.tracking():
        before.add_(1)
        mask = before > 0  # `allocated` returns None for it
        assert log.number(before) is None
        assert log.number(mask) is None
        del mask
    del before
    assert log.events == []


def test_nothing_is_tracked_outside_the_with_block() -> None:
    log = Log()
    with log.tracking():
        pass
    torch.ones(4)
    assert log.events == []
