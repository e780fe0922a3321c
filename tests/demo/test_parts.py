"""The demo's parts for silent thoughts and for drafts, on untrained models: what they count."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.demo.drafts import NUM_TOKENS, OPENINGS, draft_demo
from inward.demo.thoughts import thoughts_demo
from inward.methods.tidar.model import TiDAR
from inward.recipes import find
from inward.recipes.coconut import ProsQAData, SmallBase
from tests.methods.tidar.toys import llama


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_drafts_change_no_word_and_save_forwards():
    tokenizer = byte_tokenizer()
    base = llama(vocab_size=len(tokenizer) + 1, max_position_embeddings=512)
    model = TiDAR(base, len(tokenizer), 8).eval()
    out = console()
    found = draft_demo("toy", model, tokenizer, seed=3, num=2, console=out)
    assert found.same and found.tokens == 2 * NUM_TOKENS
    assert 0 < found.forwards <= found.tokens
    assert "the same words as token by token" in shown(out)
    assert any(opening in shown(out) for opening in OPENINGS)


def test_thoughts_are_counted_against_the_blind_rule():
    recipe = find("prosqa-interleaved")()
    assert isinstance(recipe.data, ProsQAData)
    recipe = replace(recipe, base=SmallBase(width=16, num_layers=1, num_heads=2), max_new_tokens=8)
    torch.manual_seed(0)
    model, out = recipe.model().eval(), console()
    found = thoughts_demo("toy", model, recipe, seed=7, num=4, console=out)
    assert found.num == 4 and 0.0 <= found.paired <= found.accuracy <= 1.0
    assert "thought 1" in shown(out) and "the silent search" in shown(out)
    files = find("coconut-prosqa")()
    with pytest.raises(ValueError, match="not trained on generated ProsQA"):
        thoughts_demo("toy", model, files, seed=7, num=1, console=out)
