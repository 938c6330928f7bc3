"""What the simulated model reads and says, in any dialect: a word is a token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

MAXIMUM_ANSWER_TOKENS = 30
MAXIMUM_MODEL_LENGTH = 8192

_QUOTED_TOKENS = 12
_TOKEN = re.compile(r"\s*\S+")

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Part(msgspec.Struct):
    """A piece of a message; what is no text, such as an image, says nothing."""

    text: str = ""


Content = str | list[Part] | None


class Message(msgspec.Struct):
    """A turn of a conversation."""

    role: str
    content: Content = None


Conversation = Annotated[list[Message], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model says.

    Attributes:
        tokens: each with the blanks before it.
        is_cut: whether there would be more without the cap.
    """

    tokens: list[str]
    is_cut: bool

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.tokens)


def text_of(content: Content) -> str:
    """What a message says."""
    parts = [Part(content)] if isinstance(content, str) else content or []
    return " ".join(part.text for part in parts)


def spoken(messages: Iterable[Message]) -> str:
    """What all the messages say."""
    return " ".join(text_of(message.content) for message in messages)


def words(text: str) -> list[str]:
    """The tokens of a text, each with the blanks before it."""
    return _TOKEN.findall(text)


def spelled(token_ids: Sequence[int] | str) -> str:
    """The text that token ids stand for: a word each; a text stands for itself."""
    return token_ids if isinstance(token_ids, str) else " ".join(map(str, token_ids))


def greeting(model: str) -> str:
    """How a model begins each reply."""
    return f"Hello! I am {model}, a simulated model, and I am doing well."


def reply(opening: str, question: str, cap: int | None = None) -> Reply:
    """The opening and a quotation of the question, in at most `cap` tokens, and never more than 30."""
    quoted = "".join(words(question)[:_QUOTED_TOKENS]).strip() or "nothing"
    tokens = words(f"{opening} You said: {quoted}")[:MAXIMUM_ANSWER_TOKENS]
    kept = tokens[:cap]
    return Reply(kept, is_cut=len(kept) < len(tokens))
