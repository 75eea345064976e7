"""Known tools as trainers: Axolotl, LLaMA-Factory and TRL train from a YAML file of the user.

Names of settings: Axolotl 0.19's ``AxolotlInputConfig``, LLaMA-Factory 0.9.5's argument classes,
TRL 1.16's ``ModelConfig`` and the ``TrainingArguments`` of transformers.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import RequestError, shown, some
from rankwise.lora.adapter import INITS_THAT_CHANGE_THE_BASE
from rankwise.lora.alpha import whole_as_int
from rankwise.trainers.command import VALUES, Command, parse_command
from rankwise.trainers.config_file import ConfigFile
from rankwise.trainers.function_name import FunctionName, parse_function


@dataclass(frozen=True)
class Tool:
    """A tool that trains from a YAML file.

    Attributes:
        words: its command, without the file.
        keys: its names of a trial's values.
        base: its name of the base model.
        needed: settings with the values that a sweep needs.
        refused: settings that contradict a sweep, each with the reason.
        evaluates: groups of settings; with one of each group it evaluates while it trains.
    """

    words: tuple[str, ...]
    keys: Mapping[str, str]
    base: str
    needed: Mapping[str, tuple[object, ...]]
    refused: Mapping[str, str]
    evaluates: tuple[tuple[str, ...], ...]


SHARED_KEYS = {
    "lora_alpha": "lora_alpha",
    "learning_rate": "learning_rate",
    "seed": "seed",
    "out": "output_dir",
}
PUSHES = "would push every trial to a hub"
CONTINUES = "would start trials from an adapter that is trained already"
MERGES = "would merge the adapter, which rankwise judges"
TRL = Tool(
    words=("trl",),
    keys={**SHARED_KEYS, "rank": "lora_r", "use_rslora": "use_rslora"},
    base="model_name_or_path",
    needed={"use_peft": (True,)},
    refused={"push_to_hub": PUSHES, "resume_from_checkpoint": CONTINUES},
    evaluates=(("eval_strategy",),),  # do_eval does nothing while the Trainer trains
)
TOOLS = {
    "axolotl": Tool(
        words=("axolotl", "train"),
        keys={**SHARED_KEYS, "rank": "lora_r", "use_rslora": "peft_use_rslora"},
        base="base_model",
        needed={"adapter": ("lora", "qlora")},
        refused={
            "hub_model_id": PUSHES,
            "lora_model_dir": CONTINUES,
            "resume_from_checkpoint": CONTINUES,
            "auto_resume_from_checkpoints": CONTINUES,
            "merge_lora": MERGES,
            "relora": "would merge adapters into the base while it trains",
            "lora_rank_pattern": "would give layers ranks of their own",
        },
        evaluates=(("val_set_size", "test_datasets"),),
    ),
    "llama-factory": Tool(
        words=("llamafactory-cli", "train"),
        keys={**SHARED_KEYS, "rank": "lora_rank", "use_rslora": "use_rslora"},
        base="model_name_or_path",
        needed={"finetuning_type": ("lora",), "do_train": (True,)},
        refused={
            "push_to_hub": PUSHES,
            "adapter_name_or_path": CONTINUES,
            "resume_from_checkpoint": CONTINUES,
            "export_dir": MERGES,
        },
        evaluates=(("eval_strategy",), ("val_size", "eval_dataset")),
    ),
}
JSON_LINES = (".jsonl", ".json")  # how the names of files end that a tool reads as JSON
TRL_METHODS = ("sft", "dpo", "grpo", "kto", "reward", "rloo")


@dataclass(frozen=True)
class ToolCommand:
    """A tool and the user's file for it; each trial has a copy with its own values.

    Attributes:
        name: the tool, as the request names it.
        tool: how it is called.
        file: the user's file.
        data: the data of the sweep; where the file names them, a trial trains on their training
            part.
    """

    name: str
    tool: Tool
    file: ConfigFile
    data: str | None

    config_name = "config.yaml"

    def has(self, name: str) -> bool:
        """Return whether each trial is told this value."""
        return name in VALUES or (name == "train_data" and bool(self._own_data))

    def fill(self, texts: Mapping[str, str]) -> list[str]:
        """Return the command of a trial."""
        words = self.tool.words
        if words == TRL.words:
            method = self.name.partition(" ")[2] or TRL_METHODS[0]
            return [*words, method, "--config", texts["config"]]
        return [*words, texts["config"]]

    def config_text(self, values: Mapping[str, Any]) -> str:
        """Return the file of a trial."""
        changed = {key: values[name] for name, key in self.tool.keys.items()}
        changed["lora_alpha"] = whole_as_int(float(values["lora_alpha"]))
        if not values["use_rslora"] and self.tool.keys["use_rslora"] not in self.file.values:
            del changed[self.tool.keys["use_rslora"]]
        return self.file.changed(changed, {text: values["train_data"] for text in self._own_data})

    @property
    def _own_data(self) -> set[str]:
        """Texts in the file that name the sweep's data."""
        if self.data is None:
            return set()
        wanted = Path(self.data).resolve()
        return {text for text in _texts(self.file.values) if Path(text).resolve() == wanted}


def _texts(content: Any) -> set[str]:
    """Return all texts in a file's content that may be paths."""
    if isinstance(content, dict):
        return set().union(*map(_texts, content.values()))
    if isinstance(content, list):
        return set().union(*map(_texts, content))
    return {content} if isinstance(content, str) and content and "\0" not in content else set()


def find_tool(name: str) -> Tool | None:
    """Return the tool of a name such as ``axolotl``, ``trl`` or ``trl dpo``; None for a command."""
    words = name.split()
    if words[:1] == ["trl"] and (words[1:] == [] or (len(words) == 2 and words[1] in TRL_METHODS)):
        return TRL
    return TOOLS.get(name)


Trainer = Command | ToolCommand | FunctionName


def parse_trainer(trainer: str, config: Path | None, data: Any = None) -> Trainer:
    """Return the trainer that a request names: a command, or a tool with the user's file.

    Raises:
        RequestError: the command or the file cannot serve a sweep.
    """
    tool, function = find_tool(trainer), parse_function(trainer, data is not None)
    if tool is None:
        if config is not None:
            raise RequestError(
                f"trainer_config goes with the trainers {', '.join(TOOLS)} and trl; a command "
                "names its own files"
            )
        return function or parse_command(trainer)
    if config is None:
        raise RequestError(f"trainer {trainer!r} needs its own YAML file: add --trainer-config")
    file = read_tool_file(trainer, tool, config)
    if shutil.which(tool.words[0]) is None:
        raise RequestError(f"trainer {trainer!r}: command {tool.words[0]!r} not found; install it")
    command = ToolCommand(trainer, tool, file, None if data is None else str(data))
    if command.has("train_data") and Path(str(data)).suffix not in JSON_LINES:
        raise RequestError(
            f"data {str(data)!r}: {config.name} names it, and its training part is JSON lines, "
            "which the file may not expect; convert the data to .jsonl, or name held-out rows "
            "with --eval-data and other --data"
        )
    return command


def read_tool_file(trainer: str, tool: Tool, path: Path) -> ConfigFile:
    """Read the user's file for a tool.

    Raises:
        RequestError: it cannot be read, or contradicts a sweep.
    """
    file, label = ConfigFile(path), f"trainer_config {str(path)!r}"
    for key, allowed in tool.needed.items():
        value = file.values.get(key)
        if value not in allowed:
            says = f"has no {key}" if value is None else f"has {key}: {json.dumps(value)}"
            words = some([f"{key}: {json.dumps(each)}" for each in allowed])
            raise RequestError(f"{label} {says}; {trainer} trains a LoRA adapter with {words}")
    for key, problem in tool.refused.items():
        if file.values.get(key):
            value = shown(file.values[key])
            raise RequestError(f"{label}: {key} {value} {problem}; take it out of the file")
    if not isinstance(file.values.get(tool.base), str):
        raise RequestError(f"{label} has no {tool.base}, the base model; add it")
    return file


def check_adapters(command: ToolCommand, *, truncates: bool) -> None:
    """Refuse a file whose adapters cannot be scored by their delta-W, or not be truncated.

    Raises:
        RequestError: it names the setting.
    """
    values = command.file.values
    init = str(values.get("peft_init_lora_weights")).lower()
    problems = {
        "pissa_init": values.get("pissa_init") and "changes the base weights",
        "peft_init_lora_weights": init.startswith(INITS_THAT_CHANGE_THE_BASE)
        and "changes the base weights",
    }
    for key in ("use_dora", "peft_use_dora"):
        problems[key] = truncates and values.get(key) and "leaves adapters that cannot be truncated"
    for key, problem in problems.items():
        if problem:
            raise RequestError(
                f"trainer_config {str(command.file.path)!r}: {key} {shown(values[key])} {problem}; "
                "take it out of the file"
            )


def check_metric(command: ToolCommand, metric: str) -> None:
    """Refuse a metric of an evaluation where a tool's file asks for none.

    Raises:
        RequestError: it names the settings.
    """
    values, groups = command.file.values, command.tool.evaluates
    asked = [any((values.get(key) or "no") != "no" for key in keys) for keys in groups]
    if metric.startswith("eval") and not all(asked):
        raise RequestError(
            f"metric {metric!r}: {command.file.path.name} has no evaluation during training; set "
            f"{' and '.join(map(' or '.join, groups))} there, or give --data, on which rankwise "
            "scores the adapters"
        )


def notes_on_file(command: ToolCommand, quantization: str) -> list[str]:
    """Return what of the user's file does not hold in a sweep, or in the scoring."""
    keys = command.tool.keys
    replaced = [key for key in keys.values() if key in command.file.values]
    notes = [f"{some(replaced, 9)} of {command.file.path.name} are replaced in every trial"]
    if command.file.values.get("seed") is not None:
        notes.append("its seed is that of no trial: seeds of trials are 0, 1 and so on")
    values = command.file.values
    if values.get("data_seed") is not None:
        notes.append(
            "its data_seed gives all trials one order of examples, so seeds differ by less than "
            "those of your later trainings may; take it out to have the order follow the seed"
        )
    is_4bit = values.get("adapter") == "qlora" or values.get("quantization_bit") == 4
    if quantization == "none" and (is_4bit or values.get("load_in_4bit")):
        notes.append(
            "it trains over a base in 4 bits, and its adapters are scored over one that is not "
            "quantized; --quantization nf4 scores them over the same"
        )
    return notes
