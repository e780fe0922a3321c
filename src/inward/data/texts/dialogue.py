"""Texts as a chat model is to learn them: what is given, and what it says, by its own template.

Models call the answering role differently (Huginn's template calls it `Huginn`); a template that
meets another name writes a header that the model has never seen where it is asked to answer. So the
name is found out: it is the one whose finished reply begins as the template begins a reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inward.common import IGNORE
from inward.common.checks import check_slice, checked_seed
from inward.data.texts.anyfile import Passage

Message = dict[str, str]
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Dialogue:
    """A tokenizer with the name of its answering role; "" where it has no chat template."""

    tokenizer: Any
    role: str

    @classmethod
    def of(cls, tokenizer: Any, role: str = "") -> Dialogue:
        """With the template's own role, or `role` if the template begins replies with it.

        Raises:
            ValueError: the role is not the template's, or there is no template to name one for, or
                the template begins no reply as it writes one.
        """
        if getattr(tokenizer, "chat_template", None) is None:
            if role:
                raise ValueError(
                    f"role is {role!r}, but the base has no chat template that names roles; leave "
                    "it out"
                )
            return cls(tokenizer, "")
        found = [name for name in _candidates(tokenizer) if cls(tokenizer, name)._fits()]
        if role:
            if not cls(tokenizer, role)._fits():
                raise ValueError(
                    f"role is {role!r}, but the base's chat template begins a reply otherwise; its "
                    f"own is {found[0]!r}" if found else f"role is {role!r}, which the base's chat "
                    "template does not write as it begins a reply"
                )  # fmt: skip
            return cls(tokenizer, role)
        if not found:
            raise ValueError(
                "the base's chat template does not write a reply as it begins one, whatever the "
                "role is called; name it by role, or mend the template"
            )
        return cls(tokenizer, found[0])

    def _fits(self) -> bool:
        from jinja2.exceptions import TemplateError

        asked = [{"role": "user", "content": "x"}]
        said = {"role": self.role, "content": "y"}
        try:
            return self._text([*asked, said]).startswith(self._text(asked, begin=True) + "y")
        except TemplateError:  # a template that knows its roles
            return False

    def _text(self, messages: Sequence[Message], *, begin: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=begin, tokenize=False
        )

    def messages(self, passage: Passage) -> list[Message]:
        """What is given, with this model's name for who answers."""
        if isinstance(passage.asked, str):
            return [{"role": "user", "content": passage.asked}]
        return [
            {"role": self.role if role == "assistant" else role, "content": content}
            for role, content in passage.asked
        ]

    def pair(self, passage: Passage) -> Pair:
        """Tokens of what is given and of what is said, which ends with an end token.

        Raises ValueError: chats without a template.
        """
        if not passage.asked:
            return [], self._ended(list(self.tokenizer(passage.said).input_ids))
        if not self.role:
            if not isinstance(passage.asked, str):
                raise ValueError(
                    "these are chats, and the base has no chat template to write them with; take "
                    "a chat model, or questions, or texts"
                )
            said = self._ids("\n" + passage.said)
            return list(self.tokenizer(passage.asked).input_ids), self._ended(said)
        asked = self.messages(passage)
        begun = self._text(asked, begin=True)
        whole = self._text([*asked, {"role": self.role, "content": passage.said}])
        if not whole.startswith(begun):
            raise ValueError(
                "the base's chat template writes this chat otherwise once it is answered, so "
                f"nothing can be told apart in it: {whole[:80]!r}"
            )
        return self._ids(begun), self._ended(self._ids(whole[len(begun) :]))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ended(self, ids: list[int]) -> list[int]:
        """Up to the end token, or with it."""
        end = self.tokenizer.eos_token_id
        if end is None:
            return ids
        return ids[: ids.index(end) + 1] if end in ids else [*ids, end]


def _candidates(tokenizer: Any) -> list[str]:
    """The usual name, then the words with which a reply begins."""
    asked = [{"role": "user", "content": "x"}]
    plain, begun = (
        tokenizer.apply_chat_template(asked, add_generation_prompt=begin, tokenize=False)
        for begin in (False, True)
    )
    return ["assistant", *re.findall(r"\w+", begun[len(plain) :])]


class DialogueSource:
    """Pairs as rows of their own, in a new order every epoch, a pure function of the step.

    A batch of b rows holds input_ids (b, S) int64, labels (b, S) int64 unshifted with IGNORE where
    nothing is learned, attention_mask (b, S) bool and weight (b,), the predictions of each row. S
    is that of the longest row of the whole global batch; shorter ones are padded on the right.
    """

    def __init__(self, pairs: Sequence[Pair], *, seed: int, whole: bool = False) -> None:
        """whole: what is given is learned, too.

        Raises ValueError: nothing is left to be learned.
        """
        self.pairs, self.whole, self.seed = list(pairs), whole, checked_seed(seed)
        self._order: tuple[int, np.ndarray] | None = None  # a memo, not state
        if not self.learned:
            raise ValueError("no text holds a token that is to be predicted")

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def learned(self) -> int:
        """Predictions of an epoch: nobody predicts the first token of a row."""
        return sum(self._from(pair) for pair in self.pairs)

    def _from(self, pair: Pair) -> int:
        asked, said = pair
        return len(asked) + len(said) - 1 if self.whole or not asked else len(said)

    def batch(self, step: int, rows: range, num_rows: int) -> dict[str, Any]:
        """See `inward.data.puzzles.source.Source.batch`, and the class for what is in it."""
        import torch

        check_slice(step, rows, num_rows)
        every = [self.pairs[self._index(step * num_rows + row)] for row in range(num_rows)]
        length = max(len(asked) + len(said) for asked, said in every)
        ids = np.zeros((len(rows), length), np.int64)
        labels, mask = np.full_like(ids, IGNORE), np.zeros(ids.shape, bool)
        for i, row in enumerate(rows):
            asked, said = every[row]
            stop = len(asked) + len(said)
            ids[i, :stop], mask[i, :stop] = [*asked, *said], True
            first = 0 if self.whole else len(asked)
            labels[i, first:stop] = ids[i, first:stop]
        weight = (labels[:, 1:] != IGNORE).sum(1)
        made = {"input_ids": ids, "labels": labels, "attention_mask": mask, "weight": weight}
        return {name: torch.from_numpy(array) for name, array in made.items()}

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self))
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, 0, 1])
            self._order = epoch, rng.permutation(len(self))
        return int(self._order[1][place])

    def describe(self) -> dict[str, Any]:
        """Settings as JSON values, for logs and model cards."""
        return {
            "kind": "dialogues",
            "num_texts": len(self),
            "num_tokens": sum(len(asked) + len(said) for asked, said in self.pairs),
            "learned": self.learned,
            "answers_only": not self.whole,
            "seed": self.seed,
        }
