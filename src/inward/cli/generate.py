"""`inward generate`: a language model continues what you type, and shows how it thought.

tyro reads the fields' types at run time, so there is no `from __future__ import annotations` here.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inward.cli.options import _go


@dataclass(kw_only=True)
class Generate:
    """Continue texts with a language model (Huginn, Coconut, TiDAR)."""

    model: str
    """a shipped model's name, or the folder of a run or a model"""
    prompt: tuple[str, ...]
    """texts (quote them); - reads one from standard input"""
    tokenizer: str | None = None
    """folder of a tokenizer; None: the model's own, or the letters of its task"""
    max_new_tokens: int = 64
    """tokens to add at most"""
    sample: bool = False
    """draw tokens instead of taking the likeliest"""
    temperature: float = 1.0
    """with --sample"""
    top_k: int = 0
    """with --sample: only the so many likeliest tokens; 0: all"""
    top_p: float = 1.0
    """with --sample: only the likeliest tokens that have this share together"""
    seed: int = 0
    """with --sample: prompt i draws with seed + i"""
    max_steps: int | None = None
    """Huginn: recurrences a token may take; None: the mean of its training"""
    exit: str | None = None
    """Huginn: when a token has thought enough: never, kl, entropy, latent, stable, ..."""
    policy: str | None = None
    """Huginn: which recurrences share cache: deepest, per-depth, ring:N, shared, ..."""
    thoughts: tuple[int, ...] | None = None
    """Coconut: thoughts of each block, a sentence between blocks; None: as it was trained"""
    scheme: str | None = None
    """TiDAR: one_pass, partial, two_pass, diffusion, plain, auto"""
    K: int | None = None
    """TiDAR: tokens of a draft"""
    show: bool = False
    """how each piece came about: depths, thoughts through the lens, drafts"""
    trace: Path | None = None
    """write all traces to this file, one JSON line each"""

    def run(self, words: list[str]) -> int:
        """Run it."""
        from inward.cli.options import quiet
        from inward.common.sampling import Sampling
        from inward.common.trace import write_traces
        from inward.hub import load
        from inward.thinker import codec_of, write

        texts = [sys.stdin.read() if text == "-" else text for text in self.prompt]
        if not texts:
            raise ValueError("no prompt given; type one after the model, or - for standard input")
        sampling = Sampling(seed=self.seed)
        if self.sample:
            sampling = Sampling(
                "gumbel",
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                seed=self.seed,
            )
        elif (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise ValueError("--temperature, --top-k and --top-p act on drawn tokens; add --sample")
        quiet()
        model = load(self.model)
        codec = codec_of(self.model, model, self.tokenizer)
        options = {
            name: getattr(self, name)
            for name in ("max_steps", "exit", "policy", "thoughts", "scheme", "K")
        }
        written = write(
            model,
            codec,
            texts,
            recipe=self._recipe(),
            max_new_tokens=self.max_new_tokens,
            sampling=sampling,
            **options,
        )
        for prompt, one in zip(texts, written, strict=True):
            self._tell(prompt, one, codec)
        if self.trace is not None:
            write_traces([one.trace for one in written], self.trace)
        return 0

    def _recipe(self) -> Any:
        """What the model was trained by, if that is known."""
        from inward.recipes.of import recipe_of

        try:
            return recipe_of(self.model)
        except FileNotFoundError:
            return None

    def _tell(self, prompt: str, one: Any, codec: Any) -> None:
        from rich.console import Console

        from inward.viz import terminal, text, thoughts

        if self.show and one.trace.method == "coconut":
            thoughts.show_thoughts(one.trace, lambda token: codec.decode([token]))
        elif self.show:
            Console().print(text.told(one.trace, codec.decode), highlight=False)
        print(f"{prompt}{one.text}")
        cost = terminal.flops_text(one.trace.cost.flops)
        print(f"  [{len(one.tokens)} tokens, {one.depth}, {cost}; {one.trace.stopped}]")


def generate(words: list[str]) -> int:
    """Continue what the user types."""
    from inward.cli.generate import Generate

    return _go(Generate, "generate", words)
