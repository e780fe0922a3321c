"""Every method as something to train, tiny, and data that is a function of step and row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inward.common.draws import Batch
from inward.data.thoughts.columns import collate
from inward.methods.coconut.model import Coconut
from inward.methods.huginn.config import HuginnConfig
from inward.methods.huginn.model import HuginnForCausalLM
from inward.methods.huginn.settings import Watch
from inward.methods.huginn.train import HuginnTraining
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.settings import AdapterSettings
from inward.methods.trm.model import TRM
from inward.methods.trm.settings import TRMSettings
from inward.train.run import Run
from tests.methods.coconut import toys as thoughts
from tests.methods.tidar import toys as drafts

ATTENTION = TRMSettings(
    vocab_size=7,
    seq_len=12,
    grid=(3, 4),
    hidden_size=16,
    num_heads=2,
    swiglu_multiple=8,
    T=2,
    n=2,
    n_sup=3,
    prefix_len=2,
    num_identifiers=5,
    mixer="attention",
    positions="rope",
)
CUBE = TRMSettings(
    vocab_size=6,
    seq_len=16,
    hidden_size=6,
    mixer="cube",
    prefix_len=0,
    num_identifiers=0,
    T=1,
    n=2,
    n_sup=4,
    loss="softmax",
    supervision="stay",
)


class Rows:
    """A source that makes row by row: `make` gets a generator for each."""

    def __init__(self, make: Callable[[list[np.random.Generator]], Batch]) -> None:
        self.make = make

    def batch(self, step: int, rows: range, num_rows: int) -> Batch:
        return self.make([np.random.default_rng([7, step, row]) for row in rows])

    def describe(self) -> dict[str, Any]:
        return {}


def puzzles(settings: TRMSettings) -> Callable[[list[np.random.Generator]], Batch]:
    low, size = (2 if settings.mixer == "cube" else 1), settings.seq_len

    def make(draws: list[np.random.Generator]) -> Batch:
        made = [torch.from_numpy(rng.integers(low, settings.vocab_size, size)) for rng in draws]
        batch = {"inputs": torch.stack(made), "labels": torch.stack(made).flip(1)}
        if settings.num_identifiers:
            owners = [int(rng.integers(settings.num_identifiers)) for rng in draws]
            batch["identifiers"] = torch.tensor(owners)
        return batch

    return make


def texts(vocab: int, length: int) -> Callable[[list[np.random.Generator]], Batch]:
    """Counting up from a random number, so that there is something to learn."""

    def make(draws: list[np.random.Generator]) -> Batch:
        firsts = torch.tensor([int(rng.integers(vocab)) for rng in draws])
        ids = (firsts[:, None] + torch.arange(length)) % vocab
        weight = torch.tensor(len(ids) * (length - 1))
        return {"input_ids": ids, "labels": ids, "weight": weight}

    return make


def thinking(*shapes: tuple[int, ...]) -> Callable[[list[np.random.Generator]], Batch]:
    def make(draws: list[np.random.Generator]) -> Batch:
        samples = []
        for rng in draws:
            shape = shapes[int(rng.integers(len(shapes)))]
            samples.append(thoughts.interleaved(*shape, seed=int(rng.integers(1000))))
        batch = collate(samples, thoughts.SPECIALS)
        batch["weight"] = (batch["labels"] != -100).sum()
        return batch

    return make


def huginn() -> HuginnForCausalLM:
    torch.manual_seed(0)
    return HuginnForCausalLM(
        HuginnConfig(
            n_embd=16,
            num_attention_heads=2,
            intermediate_size=24,
            n_layers_in_prelude=1,
            n_layers_in_recurrent_block=2,
            n_layers_in_coda=1,
            vocab_size=30,
            block_size=32,
            mean_recurrence=3,
            mean_backprop_depth=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _trm(settings: TRMSettings) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = TRM(settings)
    torch.nn.init.normal_(model.q_head.weight, std=0.1)

    def evaluate(model: Any) -> dict[str, float]:
        question = puzzles(settings)([np.random.default_rng([1, row]) for row in range(4)])
        question.pop("labels")
        solution = model.solve(question.pop("inputs"), max_steps=3, halt="never", **question)
        return {"answers": float(solution.answers.sum()), "q": float(solution.q.sum())}

    return model, puzzles(settings), evaluate


def _said(model: Any, ids: Tensor, **options: Any) -> dict[str, float]:
    words = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, **options)
    return {"said": float((words * torch.arange(1, words.shape[1] + 1)).sum())}


def _huginn() -> tuple[nn.Module, Any, Any]:
    model = HuginnTraining(huginn(), watch=Watch(every=4, rows=1))
    ids = torch.arange(6)[None]
    return model, texts(30, 13), lambda model: _said(model.model, ids, do_sample=False)


def _coconut(*shapes: tuple[int, ...], lora: bool = False) -> tuple[nn.Module, Any, Any]:
    base: Any = thoughts.make_base("llama", dtype=torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        adapter = LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules="all-linear",
            trainable_token_indices=[37, 38],
        )
        base = get_peft_model(base, adapter)
    ids = torch.tensor([[3, 4, 5, 6]])
    return Coconut(base, thoughts.SPECIALS), thinking(*shapes), lambda model: _said(model, ids)


def _tidar(adapter: bool) -> tuple[nn.Module, Any, Any]:
    base = drafts.llama(tie_word_embeddings=True, initializer_range=0.1)
    wears = DraftAdapter(base, AdapterSettings(rank=4, alpha=8.0)) if adapter else None
    model = TiDAR(base, drafts.V if adapter else drafts.MASK, 4, adapter=wears)
    ids = torch.arange(6)[None]
    return model, texts(drafts.MASK, 12), lambda model: _said(model, ids)


METHODS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "trm": lambda: _trm(ATTENTION),
    "trm-mlp": lambda: _trm(replace(ATTENTION, mixer="mlp", positions="none")),
    "trm-cube": lambda: _trm(CUBE),
    "huginn": _huginn,
    "cot": lambda: _coconut(()),
    "coconut": lambda: _coconut((2,), (3,)),
    "interleaved": lambda: _coconut((2, 1), (1, 2)),
    "coconut-lora": lambda: _coconut((2,), (1,), lora=True),
    "tidar": lambda: _tidar(False),
    "tidar-adapter": lambda: _tidar(True),
}


def run_of(name: str) -> Run:
    """A fresh model of this method, with its data and what evaluates it."""
    model, make, evaluate = METHODS[name]()
    return Run(model.train(), Rows(make), evaluate)
