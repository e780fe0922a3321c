"""What is no prompt, no batch and no number is one clear error before the first forward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inward.data.thoughts.segments import Latent, Sample, Text
from inward.methods.coconut.generate import generate
from inward.methods.coconut.model import Coconut
from inward.methods.tidar.decode import decode
from inward.methods.tidar.model import TiDAR
from inward.methods.tidar.settings import TiDARSettings
from tests.test_clients import BATCH, LLAMA, MASK, PROMPT, SPECIALS, custom

COCONUT = Coconut(LLAMA, SPECIALS).eval()
TIDAR = TiDAR(LLAMA, 39, 4, probe=False).eval()
SAMPLE = Sample((Text((3, 4, 37), False), Latent(2), Text((38,), False), Text((5, 6), True)))
COLUMNS = COCONUT.collate([SAMPLE])


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the model has looked too late."""

    def forward(*_: Any, **__: Any) -> None:
        raise AssertionError("a forward")

    monkeypatch.setattr(LLAMA.model, "forward", forward)


BAD_IDS: dict[str, tuple[Any, str]] = {
    "too large": (torch.tensor([[7, 99]]), "99, the model knows 0 to 39"),
    "negative": (torch.tensor([[7, -1]]), "-1 to 7, the model knows"),
    "floats": (torch.tensor([[7.0, 3.0]]), "float32"),
    "bools": (torch.tensor([[True, False]]), "bool"),
    "one row": (torch.tensor([7, 3]), r"\(2,\)"),
    "empty": (torch.zeros(1, 0, dtype=torch.long), "has 0 tokens"),
    "a text": ("ab", "is a str"),
    "numbers": ([7, 3], r"is a list|holds '7'"),
    "a float in a list": ([[7, 2.5]], r"is a list|holds '\[7, 2\.5\]'"),
}
WAYS: dict[str, Callable[..., Any]] = {
    "coconut": COCONUT.generate,
    "tidar": TIDAR.generate,
    "decode": lambda ids, **options: decode(TIDAR, ids, **options),
}


@pytest.mark.parametrize("kind", sorted(BAD_IDS))
@pytest.mark.parametrize("way", sorted(WAYS))
def test_prompts(way, kind):
    ids, told = BAD_IDS[kind]
    with pytest.raises(ValueError, match=told):
        WAYS[way](ids, max_new_tokens=2)


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("number", (2.5, "3", 0, -1, True))
def test_numbers_of_tokens(way, number):
    with pytest.raises(ValueError, match="max_new_tokens"):
        WAYS[way](PROMPT, max_new_tokens=number)


@pytest.mark.parametrize("K", (2.5, "4", 0, -1, True))
def test_sizes_of_drafts(K):
    for call in (TIDAR.generate, lambda ids, **o: decode(TIDAR, ids, **o)):
        with pytest.raises(ValueError, match="K is"):
            call(PROMPT, K=K)
    with pytest.raises(ValueError, match="block_size"):
        TiDAR(LLAMA, 39, K, probe=False)
    with pytest.raises(ValueError, match="block_size"):
        TiDARSettings(block_size=K)


@pytest.mark.parametrize("token", (2.5, "3", True, 40, -1))
def test_mask_tokens(token):
    with pytest.raises(ValueError, match="mask_id"):
        TiDAR(LLAMA, token, 4, probe=False)
    with pytest.raises(ValueError, match="mask_id"):
        decode(LLAMA, PROMPT, mask_id=token)


def test_masks_and_tokens_of_calls():
    calls: list[Any] = [COCONUT.generate, TIDAR.generate]
    for way in calls:
        with pytest.raises(ValueError, match="attention_mask is a list"):
            way(PROMPT, [[1] * 6])
        with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 3\)"):
            way(PROMPT, torch.ones(1, 3))
        for name in ("eos_token_id", "pad_token_id"):
            with pytest.raises(ValueError, match=name):
                way(PROMPT, **{name: 2.5})
        with pytest.raises(ValueError, match=r"end tokens \[99\]"):
            way(PROMPT, eos_token_id=99)
        with pytest.raises(ValueError, match=r"seed is 1\.5"):
            way(PROMPT, seed=1.5)
    with pytest.raises(ValueError, match="holds the mask token"):
        TIDAR.generate(torch.tensor([[7, 39, 3]]))
    with pytest.raises(ValueError, match="float32"):
        custom(LLAMA, torch.tensor([[7.0, 3.0]]), max_new_tokens=2)


@pytest.mark.parametrize(
    "prompts, told",
    (
        ([[3, 4]], "give a list of Samples"),
        (SAMPLE, "give a list of Samples"),
        ([Sample((Text((99,), False),))], "holds the token 99"),
    ),
)
def test_samples(prompts, told):
    with pytest.raises(ValueError, match=told):
        generate(COCONUT, prompts)


@pytest.mark.parametrize("num", (2.5, True, 0))
def test_thoughts(num):
    with pytest.raises(ValueError, match=f"has {num} thoughts"):
        Latent(num)


@pytest.mark.parametrize(
    "changes, told",
    (
        ({"input_ids": COLUMNS["input_ids"] + 60}, "input_ids run from 63 to 99"),
        ({"input_ids": COLUMNS["input_ids"] - 50}, "input_ids run from -47"),
        ({"input_ids": COLUMNS["input_ids"].float()}, "input_ids is torch.float32"),
        ({"input_ids": COLUMNS["input_ids"].tolist()}, "input_ids is a list"),
        ({"labels": COLUMNS["labels"] + 200}, "labels run from 100 to 206"),
        ({"latent": COLUMNS["latent"].long()}, "latent is torch.int64, must be bool"),
        ({"latent": COLUMNS["latent"][:, :2]}, r"latent has shape \(1, 2\)"),
        ({"latent": None}, "the batch lacks latent"),
    ),
)
def test_batches_of_coconut(changes, told):
    batch = {k: v for k, v in (COLUMNS | changes).items() if v is not None}
    for executor in ("sequential", "recompute", "jacobi"):
        with pytest.raises(ValueError, match=told):
            COCONUT(batch, executor=executor)
    with pytest.raises(ValueError, match=told):
        COCONUT.loss(batch)


def test_batches_of_tidar():
    bad: Any = (
        (torch.tensor([[7, 99]]), "0|7 to 99"),
        (torch.tensor([[7, -1]]), "-1 to 7"),
        (torch.tensor([[7.0, 3.0]]), "float32"),
        ([[7, 3]], "is a list"),
    )
    for ids, told in bad:
        with pytest.raises(ValueError, match=told):
            TIDAR.loss({"input_ids": ids, "weight": torch.tensor([1])}, None, None)
        with pytest.raises(ValueError, match=told):
            TIDAR(ids, position_ids=torch.arange(2)[None], attention_mask=None)
    padded = torch.tensor([[7, 3, 39, 39]])
    with pytest.raises(ValueError, match="padding included"):
        TIDAR.loss({"input_ids": padded, "weight": torch.tensor([1])}, None, None)


@pytest.mark.parametrize("under", (39, 99, -100))
def test_what_lies_under_padding_is_never_read(under, monkeypatch):
    """The mask token, and ids that no model knows."""
    monkeypatch.undo()
    ids = BATCH.masked_fill(MASK == 0, under)
    for way in (COCONUT.generate, TIDAR.generate):
        wanted = way(BATCH, MASK, max_new_tokens=4, pad_token_id=0)[:, -4:]
        assert way(ids, MASK, max_new_tokens=4, pad_token_id=0)[:, -4:].tolist() == wanted.tolist()
