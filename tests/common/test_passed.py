"""Arguments that clients of transformers pass: taken where they change nothing, or refused."""

from typing import Any

import pytest
import torch
from transformers import DataCollatorWithFlattening

from inward.common.passed import begins_of
from inward.data.thoughts.segments import Specials
from inward.data.thoughts.tokenizers import byte_tokenizer
from inward.methods.coconut.model import Coconut
from inward.methods.tidar.model import TiDAR
from tests.methods.tidar.toys import llama
from tests.test_promises import BYTES, _huginn

pytestmark = pytest.mark.versions

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
INERT: dict[str, Any] = {
    "tokenizer": byte_tokenizer(),
    "token_type_ids": torch.zeros_like(IDS),
    "cache_position": torch.arange(6),
    "cu_seq_lens_q": torch.tensor([0, 6, 12]),
    "cu_seq_lens_k": torch.tensor([0, 6, 12], dtype=torch.int32),
    "max_length_q": 6,
    "max_length_k": 9,
    "seq_idx": torch.tensor([[0] * 6 + [1] * 6]),
    "is_causal": True,
    "num_items_in_batch": None,
    "output_attentions": False,
}
WRONG: dict[str, Any] = {
    "token_type_ids": (IDS > 9).long(),
    "cache_position": torch.arange(1, 7),
    "cu_seq_lens_q": torch.tensor([0, 3, 12]),
    "cu_seq_lens_k": torch.tensor([0, 12]),
    "max_length_q": 5,
    "max_length_k": 2,
    "seq_idx": torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]]),
    "is_causal": False,
    "output_attentions": True,
    "output_hidden_states": [1],
}


@pytest.fixture(scope="module")
def huginn() -> Any:
    torch.manual_seed(0)
    return _huginn(BYTES, 64)


@pytest.mark.parametrize("name", INERT)
def test_a_forward_takes_what_changes_nothing(huginn, name):
    with torch.no_grad():
        assert torch.equal(huginn(IDS, **{name: INERT[name]}).logits, huginn(IDS).logits)


@pytest.mark.parametrize("name", WRONG)
def test_a_forward_refuses_what_would_change_the_numbers(huginn, name):
    with pytest.raises(ValueError, match=name):
        huginn(IDS, **{name: WRONG[name]})


def test_an_argument_that_there_is_not_is_named(huginn):
    with pytest.raises(TypeError, match="num_stepz"):
        huginn(IDS, num_stepz=3)


def test_packed_rows_of_the_collator_of_transformers(huginn):
    """It tells the kernels where texts begin, and says it in position_ids too."""
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch: Any = collate([{"input_ids": row.tolist()} for row in (IDS[0, :4], IDS[1])])
    batch = {k: torch.as_tensor(v) if isinstance(v, list) else v for k, v in batch.items()}
    assert begins_of(batch["position_ids"], 1) == [0, 4]
    with torch.no_grad():
        whole = huginn(**batch).logits[0]
        for part, row in ((whole[:4], IDS[0, :4]), (whole[4:], IDS[1])):
            assert torch.allclose(part, huginn(row[None]).logits[0], atol=1e-5)
    with pytest.raises(ValueError, match=r"cu_seq_lens_q is \[0, 4, 10\].*\[0, 10\]"):
        huginn(batch["input_ids"], cu_seq_lens_q=batch["cu_seq_lens_q"])


def test_behind_a_cache(huginn):
    with torch.no_grad():
        cache = huginn(IDS, use_cache=True).past_key_values
        said = huginn(
            IDS[:, :1], past_key_values=cache, cache_position=torch.tensor([6]),
            cu_seq_lens_q=torch.tensor([0, 1, 2]), cu_seq_lens_k=torch.tensor([0, 7, 14]),
        )  # fmt: skip
        assert torch.isfinite(said.logits).all()
        with pytest.raises(ValueError, match=r"cache_position is \[6\]"):
            huginn(IDS[:, :1], past_key_values=cache, cache_position=torch.tensor([6]))


def test_generate_takes_them(huginn):
    tokenizer = byte_tokenizer()
    ids = torch.tensor([tokenizer("the cat").input_ids])
    said = huginn.generate(ids, max_new_tokens=12)[0, ids.shape[1] :]
    word = next(c for c in tokenizer.decode(said) if c.isprintable() and c != "\ufffd")
    found = huginn.generate(ids, max_new_tokens=12, stop_strings=[word], tokenizer=tokenizer)
    text = tokenizer.decode(found[0, ids.shape[1] :])
    assert word in text and word not in text[: -len(word)]
    asked: dict[str, Any] = {"token_type_ids": torch.zeros_like(ids)}
    assert torch.equal(huginn.generate(ids, max_new_tokens=12, **asked)[0, ids.shape[1] :], said)
    asked["token_type_ids"] += 1
    with pytest.raises(ValueError, match="token_type_ids"):
        huginn.generate(ids, max_new_tokens=3, **asked)


@pytest.mark.parametrize("kind", ["coconut", "tidar"])
def test_wrappers_take_them(kind):
    base, tokenizer = llama(vocab_size=BYTES), byte_tokenizer()
    model: Any = Coconut(base, Specials(BYTES - 3, BYTES - 2, BYTES - 1))
    if kind == "tidar":
        model = TiDAR(base, BYTES - 1, 3)
    model.eval()
    ids = torch.tensor([tokenizer("the cat").input_ids, tokenizer("a dog s").input_ids])
    plain = model.generate(ids, max_new_tokens=6)
    inert = {name: INERT[name] for name in ("tokenizer", "is_causal")}
    inert |= {"token_type_ids": torch.zeros_like(ids), "use_cache": True}
    assert torch.equal(model.generate(ids, max_new_tokens=6, **inert), plain)
    assert torch.equal(model.generate(ids, max_new_tokens=6, packed=False), plain)
    with pytest.raises(ValueError, match="token_type_ids"):
        model.generate(ids, max_new_tokens=6, token_type_ids=torch.ones_like(ids))
    with pytest.raises(ValueError, match="use_cache"):
        model.generate(ids, max_new_tokens=6, use_cache=False)
    text = tokenizer.decode(plain[0, ids.shape[1] :])
    word = next((c for c in text if c.isprintable() and c != "\ufffd"), None)
    if word is not None:
        said = model.generate(ids[:1], max_new_tokens=6, stop_strings=[word], tokenizer=tokenizer)
        assert word in tokenizer.decode(said[0, ids.shape[1] :])
        assert said.shape[1] <= plain.shape[1]
