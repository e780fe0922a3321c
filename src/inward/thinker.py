"""Continue texts with any language model of the package: one call, whatever thinks inside.

    codec = codec_of("huginn-hops", model)            text to token ids and back
    write(model, codec, ["a>b b>a | a ."])            one `Written` a prompt, with its trace

The methods keep their own `generate` with all their options; here are those that a command line
needs, under the same names. An option of another method is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inward.common.sampling import Sampling
from inward.common.trace import Trace

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut
    from inward.methods.huginn.model import HuginnForCausalLM
    from inward.methods.tidar.model import TiDAR


@dataclass(frozen=True)
class Codec:
    """How a model's texts are written."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Written:
    """What followed one prompt: `text` of the new `tokens`, how it came about in `trace`, and
    `depth`: a phrase that sums up the thinking."""

    text: str
    tokens: list[int]
    trace: Trace
    depth: str


OPTIONS: dict[str, tuple[str, ...]] = {
    "HuginnForCausalLM": ("max_steps", "exit", "policy"),
    "Coconut": ("thoughts",),
    "TiDAR": ("scheme", "K"),
}
"""What each class takes beside what all of them take"""


def codec_of(name: str | Path, model: Any, tokenizer: str | Path | None = None) -> Codec:
    """The tokenizer given, else the one in the model's folder, else the letters of the task that
    the model was trained on.

    Raises:
        FileNotFoundError: there is none of them.
    """
    from inward.hub import resolve
    from inward.recipes.of import recipe_of

    folder = resolve(name)
    own = getattr(model, "tokenizer", None)
    if tokenizer is None and own is not None:
        return _tokenizer_codec(own)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    if tokenizer is not None or any((folder / file).exists() for file in files):
        from transformers import AutoTokenizer

        return _tokenizer_codec(AutoTokenizer.from_pretrained(tokenizer or folder))
    try:
        task: Any = recipe_of(name).task()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} holds neither a tokenizer nor a recipe.json; name a tokenizer (--tokenizer)"
        ) from error
    return Codec(
        lambda text: task.parse(text).tolist(),
        lambda ids: "".join(_letter(task, token) for token in ids),
    )


def _tokenizer_codec(tokenizer: Any) -> Codec:
    return Codec(
        lambda text: list(tokenizer(text).input_ids),
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
    )


def _letter(task: Any, token: int) -> str:
    """A token as the task writes it; "?" for one that is no part of an answer."""
    try:
        return task.word(token)
    except ValueError:
        return "?"


def write(
    model: HuginnForCausalLM | Coconut | TiDAR,
    codec: Codec,
    prompts: Sequence[str],
    *,
    recipe: Any = None,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    **options: Any,
) -> list[Written]:
    """Continue prompts.

    Args:
        recipe: of a Coconut model: how it was trained to be asked, and who switches.
        sampling: default: greedy.
        options: of Huginn max_steps, exit, policy (`huginn.generate.generate`); of Coconut thoughts
            (those of each block; without them the recipe decides, and without a recipe the model
            says its boundaries itself); of TiDAR scheme, K (`tidar.request.DecodeSettings`). None
            leaves an option at its default.
    Raises:
        ValueError: a model that writes no text, an option of another method, or what the method
            itself refuses.
    """
    kind = type(model).__name__
    if kind not in OPTIONS:
        raise ValueError(f"a {kind} writes no text; use `inward solve` for puzzles")
    given = {name: value for name, value in options.items() if value is not None}
    if wrong := sorted(set(given) - set(OPTIONS[kind])):
        others = {name: [k for k, own in OPTIONS.items() if name in own] for name in wrong}
        told = ", ".join(f"{name} (of {' '.join(own)})" for name, own in others.items())
        raise ValueError(f"the model is a {kind}, which has no {told}; it has {OPTIONS[kind]}")
    if not prompts:
        raise ValueError("there is no prompt; give at least one text")
    writer = {"HuginnForCausalLM": _huginn, "Coconut": _coconut, "TiDAR": _tidar}[kind]
    given |= {"max_new_tokens": max_new_tokens, "sampling": sampling or Sampling()}
    if kind == "Coconut":
        given["recipe"] = recipe
    return writer(model, codec, prompts, **given)


def _huginn(
    model: HuginnForCausalLM, codec: Codec, prompts: Sequence[str], **options: Any
) -> list[Written]:
    from inward.methods.huginn.generate import generate

    made = generate(model, [codec.encode(text) for text in prompts], trace="tokens", **options)
    assert made.traces is not None
    return [
        Written(
            codec.decode(row.tolist()),
            row.tolist(),
            trace,
            f"{float(steps.float().mean()):.1f} recurrences a token",
        )
        for row, steps, trace in zip(made.tokens, made.steps, made.traces, strict=True)
    ]


def _coconut(
    model: Coconut,
    codec: Codec,
    prompts: Sequence[str],
    *,
    recipe: Any = None,
    thoughts: Sequence[int] | None = None,
    **options: Any,
) -> list[Written]:
    from inward.data.thoughts.segments import Sample, Text
    from inward.methods.coconut.generate import generate
    from inward.methods.coconut.policies import Boundary, Scripted

    asked = False
    if recipe is not None and thoughts is None:
        asked = True  # as a question, which ends its line
        samples = recipe.prompts(model, [text.rstrip("\n") for text in prompts])
        options |= {
            "policy": recipe.policy(model),
            "boundaries": recipe.curriculum.layout.boundaries != "none",
        }
    else:
        samples = [Sample((Text(tuple(codec.encode(text)), False),)) for text in prompts]
        ends = frozenset(codec.encode("\n")[-1:])
        options["policy"] = Boundary() if thoughts is None else Scripted(tuple(thoughts), ends=ends)
    made = generate(model, samples, trace=True, **options)
    return [
        Written(
            "\n" * asked + codec.decode(tokens),
            tokens,
            trace,
            f"{sum(step.kind == 'thought' for step in trace.steps)} thoughts",
        )
        for tokens, trace in zip(made.tokens, made.traces, strict=True)
    ]


def _tidar(model: TiDAR, codec: Codec, prompts: Sequence[str], **options: Any) -> list[Written]:
    from inward.methods.tidar.decode import decode

    written = []
    for text in prompts:
        made = decode(model, torch.tensor([codec.encode(text)]), **options)
        (rate,) = made.tokens_per_forward
        written.append(
            Written(
                codec.decode(made.tokens[0]),
                made.tokens[0],
                made.traces[0],
                f"{rate:.2f} tokens a forward",
            )
        )
    return written
