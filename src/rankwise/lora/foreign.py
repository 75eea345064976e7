"""Directories and files that hold no PEFT LoRA adapter: what they are, and what to do instead."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import nearest, some

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ALLOWED = f"a directory with {CONFIG} and {WEIGHTS}"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_ADVICE = "is a git-lfs pointer, not the weights; run git lfs pull in its repository"
DEEPEST = 3  # folders below a directory in which adapters are looked for
SAVE_AS_PEFT = "rankwise reads adapters of language models and others as PEFT saves them"
MLX = (
    "of MLX (fine_tune_type, adapters.safetensors), not PEFT's; to read it here, save lora_a and "
    "lora_b transposed as x.lora_A.weight and x.lora_B.weight, with lora_alpha = scale * rank"
)
DIFFUSION = f"a LoRA of an image model in {{}} format, not PEFT's; {SAVE_AS_PEFT}"
TENSOR_NAMES = (
    (r"lora_(unet|te\d?|transformer|prior)_.*|lycoris_.*", DIFFUSION.format("kohya's")),
    (r"diffusion_model\..*", DIFFUSION.format("ComfyUI's")),
    (r"(unet|transformer|text_encoder(_\d)?)\..*lora.*", DIFFUSION.format("diffusers'")),
    (r".*(\.processor|_lora)\..*(up|down)\.weight", DIFFUSION.format("diffusers' old")),
    (r".*\.lora_[ab]", MLX),
    (r".*\.lora_[ab]\.weight", "of torchtune, which saves PEFT's format beside it"),
    (r".*\.lora_[AB]", "of loralib or LitGPT, not PEFT's; name its tensors x.lora_A.weight"),
)
"""Names of tensors, as regular expressions, by which other tools' files are known."""
CONFIG_KEYS = (
    ({"fine_tune_type"}, MLX),
    ({"lora_parameters"}, MLX),
    ({"lora_layers"}, MLX),
    ({"model_class", "config"}, "of the library adapters (AdapterHub), not PEFT's"),
)
"""Keys of a config by which other tools' adapters are known."""
CONVERT = (
    "PEFT approximates it by LoRA: load it with PeftModel.from_pretrained, then call "
    "peft.save_as_lora(directory, model, rank=16)"
)
PEFT_TYPES = {
    "ADALORA": "its layers add B @ diag(E) @ A; multiply E into A to read it as LoRA",
    "IA3": "it scales activations and has no factors A and B",
    "OFT": "it rotates weights and adds no factors A and B",
    "BOFT": "it rotates weights and adds no factors A and B",
    "PROMPT_TUNING": "it trains tokens and no layer",
    "P_TUNING": "it trains tokens and no layer",
    "PREFIX_TUNING": "it trains keys and values and no layer",
    "LN_TUNING": "it trains norms and has no rank",
    **dict.fromkeys(("LOHA", "LOKR", "VERA", "RANDLORA", "FOURIERFT", "MISS", "VBLORA"), CONVERT),
}
"""What adapters of other PEFT types are, and what can be done with them."""


def is_pointer(path: Path) -> bool:
    """Return whether a file is a git-lfs pointer in place of the file itself."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def explain_path(path: Path) -> str:
    """Say what a path is that is no directory."""
    if not path.exists():
        problem = f"no such directory; allowed is {ALLOWED}"
        if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)) and not path.parent.is_dir():
            return f"{problem}; from the hub: hf download {path} --local-dir {path.name}"
        parent = path.parent
        siblings = [each.name for each in parent.iterdir()] if parent.is_dir() else []
        return problem + nearest(path.name, siblings)
    if path.name in (CONFIG, WEIGHTS) and (path.parent / CONFIG).is_file():
        return f"is a file; allowed is its directory, {str(path.parent)!r}"
    if path.match("*.gguf"):
        return f"is an adapter of llama.cpp; allowed is the {ALLOWED[2:]} that it was made from"
    return _known_file(path) or f"is a file; allowed is {ALLOWED}"


def explain_directory(directory: Path) -> str:
    """Say what a directory without an ``adapter_config.json`` holds."""
    problem = f"the directory has no {CONFIG}"
    if inside := _adapters_inside(directory):
        others = f"; it holds {len(inside)} adapters" if len(inside) > 1 else ""
        return f"{problem} (did you mean {str(inside[0])!r}?){others}"
    if (directory / WEIGHTS).is_file():
        return f"{problem}, which has the rank and alpha of {WEIGHTS}; copy it from where you saved"
    for file in sorted(directory.glob("*.safetensors")):
        if known := _known_file(file):
            return f"{file.name} {known}"
    if any(directory.glob("*.gguf")):
        return f"{problem}; llama.cpp's adapters (*.gguf) are not read; allowed is {ALLOWED}"
    if (directory / "config.json").is_file() and any(directory.glob("*.safetensors")):
        return f"holds a model and no adapter; allowed is {ALLOWED}"
    pickles = [file.name for pattern in PICKLES for file in directory.glob(pattern)]
    found = f"; {some(sorted(pickles), 3)} may be pickles, which are not read" if pickles else ""
    return f"{problem}; allowed is {ALLOWED}{found}"


def explain_config(config: Any) -> str:
    """Say what an adapter is, by a config that is not of a LoRA."""
    if not isinstance(config, Mapping):
        return f"{CONFIG} holds a {type(config).__name__}; allowed is an object"
    for keys, meaning in CONFIG_KEYS:
        if keys <= config.keys() and "peft_type" not in config:
            return f"is an adapter {meaning}"
    peft_type = config.get("peft_type")
    meaning = PEFT_TYPES.get(str(peft_type), "")
    return f"is of PEFT type {peft_type!r}; allowed is 'LORA'" + (meaning and f"; {meaning}")


def explain_weights(directory: Path) -> str:
    """Say what a directory with a LoRA's config holds in place of its weights."""
    if (directory / PICKLE).is_file():
        return (
            f"has its weights as pickle only ({PICKLE}), which can run code when read; load it "
            f"with torch.load(path, weights_only=True) and save it as {WEIGHTS} by "
            "safetensors.torch.save_file"
        )
    shards = [file.name for file in directory.glob("adapter_model-*.safetensors")]
    if shards:
        return f"its weights lie in {len(shards)} files; join them in one {WEIGHTS}"
    others = [file.name for file in directory.glob("*.safetensors")]
    found = f"; rename {others[0]} if that is it" if len(others) == 1 else ""
    if inside := _adapters_inside(directory):
        found = f" (did you mean {str(inside[0])!r}?)"
    return f"the directory has no {WEIGHTS}{found}"


def explain_names(names: Iterable[str]) -> str | None:
    """Say which other tool names tensors so; None if none that is known."""
    names = list(names)
    for pattern, meaning in TENSOR_NAMES:
        if any(re.fullmatch(pattern, name) for name in names):
            return f"is {meaning}"
    return None


def _known_file(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return None
    if is_pointer(path):
        return POINTER_ADVICE
    try:
        with safe_open(path, "pt") as file:
            return explain_names(file.keys())
    except (SafetensorError, OSError):
        return None


def _adapters_inside(directory: Path) -> list[Path]:
    """Return the folders with an adapter below a directory: the likeliest of the highest first."""
    for depth in range(1, DEEPEST + 1):
        found = [config.parent for config in directory.glob("*/" * depth + CONFIG)]
        if found:
            return sorted(found, key=_likelihood)
    return []


def _likelihood(directory: Path) -> tuple[bool, int, str]:
    """Order ``best`` before other names, and the last checkpoint or epoch before earlier ones."""
    numbers = re.findall(r"\d+", directory.name)
    last = -int(numbers[-1]) if numbers else 0
    return directory.name not in ("best", "adapter", "default"), last, str(directory)
