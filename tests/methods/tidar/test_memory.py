"""A conversation is not read anew at each turn, and says what it would say if it were."""

import pytest
import torch

from inward.common.thinking import Memory, Request, answers, run
from inward.common.trace import Cost
from inward.methods.tidar.adapter import DraftAdapter
from inward.methods.tidar.door import METHOD, PLAIN
from inward.methods.tidar.model import TiDAR
from tests.methods.tidar.toys import V, gpt2, llama


def adapted() -> TiDAR:
    model = llama()
    adapter = DraftAdapter(model, own_mask=True)
    for B in adapter.lora_B.parameters():
        torch.nn.init.normal_(B, generator=torch.Generator().manual_seed(3))
    return TiDAR(model, V, 4, adapter=adapter).eval()


WAYS = {
    "plain": lambda: (PLAIN, llama()),
    "learned positions": lambda: (PLAIN, gpt2()),
    "tidar": lambda: (METHOD, adapted()),
}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_turns_say_what_fresh_ones_say(way):
    method, model = WAYS[way]()
    memory, prompt, saved = Memory(), [1, 2, 3, 4], []
    for turn in ([5, 6], [7, 8, 9], [3]):
        prompt = [*prompt, *turn]
        made: dict[str, object] = {"max_new_tokens": 3}
        (fresh,) = answers(method.begin(model), [Request(list(prompt), **made)])  # pyright: ignore[reportArgumentType]
        (known,) = answers(method.begin(model), [Request(list(prompt), memory=memory, **made)])  # pyright: ignore[reportArgumentType]
        assert known.tokens == fresh.tokens
        assert fresh.details["reused"] == 0 and known.details["num_prompt"] == len(prompt)
        saved.append(known.details["reused"])
        assert known.cost.flops < fresh.cost.flops or not saved[-1]
        prompt = [*prompt, *known.tokens]
    # the last token said has not been read yet
    assert saved[0] == 0 and saved[1] >= 8 and saved[2] >= 14


def test_only_what_is_shared_is_taken():
    model, memory = llama(), Memory()

    def said(prompt: list[int], **options: object) -> tuple[tuple[int, ...], int]:
        request = Request(prompt, max_new_tokens=3, memory=memory, own=options)
        (answer,) = answers(PLAIN.begin(model), [request])
        (fresh,) = answers(PLAIN.begin(model), [Request(prompt, max_new_tokens=3)])
        assert answer.tokens == fresh.tokens
        return answer.tokens, answer.details["reused"]

    assert said([1, 2, 3, 4])[1] == 0
    assert said([1, 2, 9, 4])[1] == 2
    assert said([1, 2, 9, 4])[1] == 3, "the last token is always read"
    assert said([8, 2])[1] == 0
    other = llama(hidden_size=16)
    (answer,) = answers(PLAIN.begin(other), [Request([8, 2], memory=memory, max_new_tokens=2)])
    assert answer.details["reused"] == 0, "it is another model's"


def test_beside_others_too():
    """One with a memory joins texts under way, and one without joins it."""
    model, memory = llama(), Memory()
    answers(PLAIN.begin(model), [Request([1, 2, 3, 4, 5], max_new_tokens=4, memory=memory)])
    work = PLAIN.begin(model, batch_size=4)
    numbers = [work.add(Request([9, 8, 7], max_new_tokens=9))]
    work.step()
    numbers.append(work.add(Request([1, 2, 3, 4, 6], max_new_tokens=9, memory=memory)))
    numbers.append(work.add(Request([4, 4], max_new_tokens=9)))
    for _ in run(work):
        pass
    found = [work.result(number) for number in numbers]
    assert [a.details["reused"] for a in found] == [0, 4, 0]
    for prompt, answer in zip(([9, 8, 7], [1, 2, 3, 4, 6], [4, 4]), found, strict=True):
        (alone,) = answers(PLAIN.begin(model), [Request(prompt, max_new_tokens=9)])
        assert answer.tokens == alone.tokens


def test_the_saving_is_what_was_not_read():
    model, memory = llama(max_position_embeddings=512), Memory()
    long = [i % 29 for i in range(300)]
    answers(PLAIN.begin(model), [Request(long, max_new_tokens=1, memory=memory)])
    costs: list[Cost] = []
    for kept in (None, memory):
        request = Request([*long, 5, 6], max_new_tokens=1, memory=kept)
        costs.append(answers(PLAIN.begin(model), [request])[0].cost)
    assert costs[1].flops < 0.05 * costs[0].flops
