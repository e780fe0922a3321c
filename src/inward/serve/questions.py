"""What a route was sent becomes what a model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inward.serve.errors import ApiError, refused
from inward.serve.schemas import ChatMessage, ResponseMessage, chat_of
from inward.thinker import Thinker


def chats(thinker: Thinker) -> bool:
    """Whether the model reads conversations."""
    tokenizer = getattr(thinker.processor, "tokenizer", None)
    return getattr(tokenizer, "chat_template", None) is not None


def of_messages(thinker: Thinker, messages: Sequence[ChatMessage | ResponseMessage]) -> Any:
    """A conversation; for a model that reads single questions (a puzzle, a text without a chat
    template) the one message that there may be.

    Raises:
        ApiError: several messages for such a model.
    """
    if chats(thinker):
        return chat_of(messages)
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].text
    what = "a puzzle" if thinker.method.reads == "puzzle" else "one text, without a chat template"
    raise refused(
        f"{thinker.name} reads {what}: send one message of the user, not {len(messages)}",
        "messages",
    )


def of_puzzle(thinker: Thinker, puzzle: str | list[int] | list[list[int]]) -> Any:
    """A puzzle as text, or its cells as an array.

    Raises:
        ApiError: the model solves no puzzles, or rows differ in length.
    """
    if thinker.method.reads != "puzzle":
        raise refused(f"{thinker.name} reads text; ask it at /v1/chat/completions", "model")
    if isinstance(puzzle, str):
        return puzzle
    rows = [row for row in puzzle if isinstance(row, list)]
    if len({len(row) for row in rows}) > 1:
        raise ApiError(400, "the rows of the puzzle differ in length", param="puzzle")
    return np.array(puzzle, dtype=np.int64)
