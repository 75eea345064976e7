"""A GPU for each of the trials that run at once."""

import os

from rankwise.errors import RequestError


def gpu_environments(at_once: int) -> list[dict[str, str]]:
    """Return the variables of each trial that runs at once, which give it a GPU of its own.

    A single trial at a time has all GPUs, and on a machine without GPUs there is none to give.

    Raises:
        RequestError: there are fewer GPUs than trials.
    """
    if at_once == 1:
        return [{}]
    from torch.cuda import device_count

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = device_count()
    gpus = [str(number) for number in range(count)]
    if visible is not None:
        gpus = [name.strip() for name in visible.split(",") if name.strip()][:count]
    if not gpus:
        return [{} for _ in range(at_once)]
    if at_once > len(gpus):
        raise RequestError(f"trials_at_once {at_once}: allowed is at most {len(gpus)}, one a GPU")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in gpus[:at_once]]
