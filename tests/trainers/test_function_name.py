from rankwise.trainers.function_name import FunctionName, parse_function, trainer_name


def train() -> None: ...


def test_a_function_is_known_by_its_name() -> None:
    text = trainer_name(train)
    assert text.endswith("test_function_name.train")
    function = parse_function(text)
    assert function == FunctionName(text.removeprefix("function "))
    assert parse_function("python train.py") is None
    assert function is not None
    values = {
        "rank": "4",
        "lora_alpha": "8",
        "learning_rate": "0.1",
        "seed": "0",
        "use_rslora": "false",
    }
    assert function.fill({**values, "out": "x"})[1:] == [
        f"{key}={text}" for key, text in values.items()
    ]
    assert function.has("rank")
    assert not function.has("train_data")
    told = parse_function(text, has_data=True)
    assert told is not None and told.has("train_data")
