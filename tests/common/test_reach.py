"""Windows and chunks count positions: the masks that a model makes itself, asked by position."""

import threading

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from inward.common.reach import (
    ALL,
    Placed,
    first_position,
    looking,
    of_columns,
    placed,
    reach_of,
    restricted,
)
from inward.studies.bases_checks import alone, words
from inward.studies.bases_tiny import WINDOW, tiny


@pytest.fixture(scope="module")
def models():
    """Tiny ones by type, each made once."""
    made = {}

    def get(kind, **changes):
        key = (kind, *changes.items())
        if key not in made:
            made[key] = tiny(kind, **changes)
        return made[key]

    return get


def usual_masks():
    return {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in ALL_MASK_ATTENTION_FUNCTIONS}


@pytest.mark.parametrize(
    ("kind", "changes", "reach"),
    [
        ("mistral", {}, WINDOW),
        ("mistral", {"sliding_window": 300}, 300),
        ("mistral", {"sliding_window": None}, ALL),
        ("llama4_text", {}, WINDOW),
        ("gpt_oss", {}, WINDOW),
        ("gemma3_text", {}, WINDOW),
        ("qwen2_moe", {}, ALL),  # makes a mask for windows that none of its layers has
        ("llama", {}, ALL),
    ],
)
def test_a_models_shortest_window_is_found(models, kind, changes, reach):
    model = models(kind, **changes)
    before, state = usual_masks(), torch.get_rng_state()
    assert reach_of(model) == reach
    assert usual_masks() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_positions_begin_where_the_model_lets_them_begin(models):
    assert first_position(models("llama")) == 0
    assert first_position(models("gpt2")) == 0
    assert first_position(models("roberta", pad_token_id=1)) == 2


def window_of(size):
    return lambda b, h, q, k: (k <= q) & (k > q - size)


def test_what_is_allowed_and_near_enough_is_seen():
    # positions 0 1 - 2 3, the third column masked; a window of two positions
    place = of_columns(torch.tensor([[1, 1, 0, 1, 1]]), 3)
    assert place.key.tolist() == [[0, 1, 1, 2, 3]]
    assert place.query.tolist() == [[1, 2, 3]]
    seen = restricted(place, window_of(2))[0, 0]
    assert seen.tolist() == [
        [True, True, True, False, False],  # the masked column: itself, or a softmax may be empty
        [False, True, False, True, False],
        [False, False, False, True, True],
    ]


def test_a_draft_looks_ahead_as_far_as_back():
    query = torch.tensor([[4, 5, 6]])
    place = Placed(torch.ones(1, 1, 3, 3, dtype=torch.bool), query, query)
    seen = restricted(place, window_of(2))[0, 0]
    assert seen.tolist() == [[True, True, False], [True, True, True], [False, True, True]]


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt_oss", "llama4_text", "cohere2"])
def test_masked_columns_take_no_room_in_a_window(models, kind):
    model, ids = models(kind), words(14, 1)
    columns = [1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 17, 18, 20, 21]
    mask, rows = torch.zeros(1, 22, dtype=torch.long), torch.full((1, 22), 5)
    mask[0, columns], rows[0, columns] = 1, torch.tensor(ids)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = alone(model, ids)
        with looking(mask, 1, 22, reach_of(model)) as handed:
            said = model(rows, attention_mask=handed, position_ids=positions).logits[0, columns]
        columnwise = model(rows, attention_mask=mask, position_ids=positions).logits[0, columns]
    size = float(want.abs().max())
    assert float((said - want).abs().max()) < 1e-4 * size
    # so it matters: transformers counts columns
    assert float((columnwise - want).abs().max()) > 1e-2 * size


def test_short_texts_and_whole_rows_are_left_to_the_model():
    gaps = torch.tensor([[0, 1, 1]])
    for mask, reach in ((gaps, ALL), (gaps, 3), (torch.ones(1, 9), 3), (None, 3)):
        with looking(mask, 1, 1, reach) as handed:
            assert handed is mask


def test_other_threads_and_errors_notice_nothing(models):
    model, ids = models("mistral"), words(12, 2)
    before = usual_masks()
    blind = torch.eye(12, dtype=torch.bool)[None, None]
    places = torch.arange(12)[None]
    found = {}

    def elsewhere():
        with torch.no_grad():
            found["logits"] = alone(model, ids)

    def fails():
        with placed(Placed(blind, places, places), 1) as mask:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            found["here"] = model(torch.tensor([ids]), attention_mask=mask).logits[0]
            raise OSError("disk")

    with torch.no_grad():
        want = alone(model, ids)
        with pytest.raises(OSError, match="disk"):
            fails()
    assert torch.equal(found["logits"], want)
    assert float((found["here"] - want).abs().max()) > 0.01
    assert usual_masks() == before


def test_attention_that_asks_for_no_mask_is_refused(models):
    model, ids = models("mistral"), words(9, 2)
    place = of_columns(torch.ones(1, 9, dtype=torch.long), 9)

    def whole():
        with torch.no_grad(), placed(place, 1):
            # a mask of four dimensions is taken as it is, as FlashAttention would make none
            model(torch.tensor([ids]), attention_mask=torch.zeros(1, 1, 9, 9))

    with pytest.raises(ValueError, match="load it with attn_implementation"):
        whole()
