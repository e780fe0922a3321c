"""Models and slow, obvious decoders for the tests of TiDAR decoding."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inward.common.trace import Trace
from inward.methods.tidar import masks

V, MASK, CONTEXT = 31, 30, 64

SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


class Leaning(LlamaForCausalLM):
    """A Llama whose clean rows and mask rows lean towards the same random token of each place, so
    that random weights draft well now and then: drafts of every length get accepted."""

    lean = 6.0
    ahead = False
    """mask rows lean towards the token after their place, too (`TiDARSettings.shifted`)"""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **options: Any) -> Any:
        output = super().forward(input_ids=input_ids, position_ids=position_ids, **options)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        place = position_ids + (self.ahead | (input_ids != MASK))
        wanted = torch.randn(2 * CONTEXT, V, generator=torch.Generator().manual_seed(9))
        rows = options.get("logits_to_keep", 0)
        own = wanted[place.expand_as(input_ids)]
        own = own if isinstance(rows, int) and rows == 0 else own[:, -rows:]
        output.logits = output.logits + self.lean * own
        return output

    @property
    def base_model(self) -> Any:
        """Not to be split: the leaning is no part of the head."""
        return self


def llama(kind: type = LlamaForCausalLM, **changes: Any) -> Any:
    """A tiny random Llama."""
    torch.manual_seed(0)
    return kind(LlamaConfig(**{**SHAPE, **changes})).eval()


def gpt2() -> Any:
    """Learned positions: a row beyond the context is an IndexError."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=V,
        n_positions=24,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.4,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def granite() -> Any:
    """Logits are more than head(hidden)."""
    torch.manual_seed(0)
    return transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SHAPE, logits_scaling=0.5)
    ).eval()


def stories() -> Any:
    """A real model of 260 thousand parameters; its id 0 is not used by its tokenizer's texts."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "models"
    folder = Path(os.environ.get("INWARD_MODELS", folder)) / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}; set INWARD_MODELS to the folder that holds it")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def prompts(num: int, length: int, *, seed: int = 1) -> Tensor:
    """(num, length) random ids without the mask token."""
    return torch.randint(0, MASK, (num, length), generator=torch.Generator().manual_seed(seed))


def drafts(trace: Trace) -> list[list[int]]:
    """The guesses that each forward judged."""
    judged = [step.view.get("draft") for step in trace.steps]
    return [[] if span is None else span.ids.tolist() for span in judged]


def record(trace: Trace) -> dict[str, Any]:
    """A trace without what no two runs share: seconds."""
    row = trace.to_dict()
    for step in row["steps"]:
        step["cost"] = untimed(step["cost"])
    return row


def untimed(cost: dict[str, Any]) -> dict[str, Any]:
    """A cost in JSON without its seconds, and those of its parts."""
    assert cost.pop("seconds", 0.1) > 0
    parts = cost.get("parts", {})
    if isinstance(parts, dict) and parts:
        cost["parts"] = {name: untimed(part) for name, part in parts.items()}
    return cost


@torch.no_grad()
def slow(
    model: PreTrainedModel,
    prompt: list[int],
    num: int,
    *,
    beta: float = 1.0,
    K: int = 4,
    choose: Callable[[list[int], Tensor], int] | None = None,
) -> list[int]:
    """Plain decoding, one token a time, no cache; with beta < 1 a mask block behind the text is
    computed anew for every token. `choose` gets the text and the (V,) logits."""
    text = list(prompt)
    for _ in range(num):
        width = 0 if beta == 1.0 else min(K, CONTEXT - len(text))
        rows = masks.prefill(len(text), width)
        mask = masks.dense(masks.sees(rows), len(text) + width)
        ids = torch.tensor([text + [MASK] * width])
        logits = model(
            ids,
            position_ids=rows.position,
            attention_mask=masks.additive(mask, torch.float32),
            use_cache=False,
        ).logits[0]
        scores = logits[len(text) - 1].clone()
        if width:
            scores = beta * scores + (1 - beta) * logits[len(text)]
        scores[MASK] = -torch.inf
        text.append(int(scores.argmax()) if choose is None else choose(text, scores))
    return text[len(prompt) :]


@torch.no_grad()
def slow_diffusion(
    model: PreTrainedModel, prompt: list[int], num: int, *, K: int, threshold: float
) -> tuple[list[int], int]:
    """Block diffusion without a cache; also the number of forwards."""
    text, forwards = list(prompt), 0
    while len(text) < len(prompt) + num:
        canvas = [MASK] * min(K, len(prompt) + num - len(text))
        while MASK in canvas:
            rows = masks.prefill(len(text), len(canvas))
            mask = masks.dense(masks.sees(rows), len(text) + len(canvas))
            logits = model(
                torch.tensor([text + canvas]),
                position_ids=rows.position,
                attention_mask=masks.additive(mask, torch.float32),
                use_cache=False,
            ).logits[0, len(text) :]
            forwards += 1
            logits[:, MASK] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            open_ = [i for i, t in enumerate(canvas) if t == MASK]
            best = max(open_, key=lambda i: float(sure[i]))
            for i in open_:
                if sure[i] > threshold or i == best:
                    canvas[i] = int(token[i])
        text += canvas
    return text[len(prompt) :], forwards
