"""One dialogue in the words of a tokenizer's chat template, and which of them are learnt."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rankwise.errors import RequestError, ran_out, reading
from rankwise.tasks.dialogues import Dialogue
from rankwise.tasks.messages import Message

GENERATION = re.compile(r"\{%-?\s*generation\b")  # a template's own mark of assistant tokens

Span = tuple[int, int]
"""First character of a stretch of text, and the one after its last."""


def marks_assistant_tokens(tokenizer: Any, tools: Sequence[Any] = ()) -> bool:
    """Whether the tokenizer's chat template itself marks the assistant's tokens."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several templates by name; chats with tools may have their own
        default = template.get("default")
        template = template.get("tool_use", default) if tools else default
    return template is not None and GENERATION.search(template) is not None


@dataclass(frozen=True)
class Chat:
    """A dialogue and the tokenizer whose chat template writes it.

    Attributes:
        row: number of the dialogue in its source, from 0, for messages to the user.
    """

    dialogue: Dialogue
    tokenizer: Any
    row: int

    @cached_property
    def messages(self) -> list[Message]:
        """The messages, with contents that are null as the template can take them.

        transformers drops them in newer versions, which makes some templates fail; in older ones
        some templates write the word "None".
        """
        messages = list(self.dialogue.messages)
        if all(message["content"] is not None for message in messages):
            return messages
        without = [{**m, "content": ""} if m["content"] is None else m for m in messages]
        text, other = self.try_render(messages), self.try_render(without)
        is_worse = text is None or (other is not None and text.count("None") > other.count("None"))
        return without if is_worse else messages

    @cached_property
    def text(self) -> str:
        """The whole dialogue as the template writes it.

        Raises:
            RequestError: the template refuses the dialogue.
        """
        return self.refusing(lambda: self.render(self.messages))

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``apply_chat_template`` beside the messages."""
        return {"tools": list(self.dialogue.tools) or None, **dict(self.dialogue.options)}

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """Return messages as the template writes them; ``options`` go to it."""
        arguments = {**self.arguments, **options, "tokenize": False}
        return self.tokenizer.apply_chat_template(list(messages), **arguments)

    def try_render(self, messages: Sequence[Message], **options: Any) -> str | None:
        """Return messages as the template writes them; None if it refuses them."""
        try:
            return self.render(messages, **options)
        except Exception as error:  # a template may do with its input whatever it likes
            if ran_out(error) is not None:
                raise
            return None

    def refusing(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns, or say in one line that the template refuses the row."""
        with reading(f"row {self.row + 1}: the model's chat template refuses its messages"):
            return work()

    def masked_tokens(self) -> tuple[list[int], list[bool]] | None:
        """Return the tokens and the template's own marks of what is learnt.

        None if it has no marks, or if not just the answers after the first message are learnt.
        """
        answers = [message["role"] == "assistant" for message in self.messages]
        if tuple(answers) != self.dialogue.learnt:
            return None
        if not marks_assistant_tokens(self.tokenizer, self.dialogue.tools):
            return None
        options = {"return_dict": True, "return_assistant_tokens_mask": True}
        encoded = self.refusing(
            lambda: self.tokenizer.apply_chat_template(self.messages, **self.arguments, **options)
        )
        return list(encoded["input_ids"]), list(map(bool, encoded["assistant_masks"]))

    def spans(self) -> list[Span]:
        """Return the span of each learnt message in the text.

        An answer starts after the template's generation prompt, any other message with its
        content. Messages that the template writes otherwise when more follow are left out.
        """
        places = [place for place, is_learnt in enumerate(self.dialogue.learnt) if is_learnt]
        found = self.refusing(lambda: [self._span(place) for place in places])
        spans = [span for span in found if span is not None]
        if places and not spans:
            raise RequestError(
                "the model's chat template writes no answer right after its own prompt"
            )
        return spans

    def _span(self, place: int) -> Span | None:
        message = self.messages[place]
        is_answer = message["role"] == "assistant"
        before = ""
        if place > 0:
            before = self.render(self.messages[:place], add_generation_prompt=is_answer)
        is_last = place == len(self.messages) - 1
        through = self.text if is_last else self.render(self.messages[: place + 1])
        if not (self.text.startswith(before) and self.text.startswith(through)):
            return None
        turn = through[len(before) :]
        content = (message["content"] or "").strip()
        start = 0 if is_answer else max(0, turn.find(content))
        eos = self.tokenizer.eos_token
        if eos and turn.rstrip().endswith(eos):  # templates write blanks after the end
            turn = turn.rstrip()
        return len(before) + start, len(before) + len(turn)
