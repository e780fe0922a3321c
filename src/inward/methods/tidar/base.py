"""What TiDAR asks of the model it wraps: a row for the mask token, and attention that obeys a mask.

Both are found out on the model itself: a list of supported classes would be wrong on the day it is
written. The probe also catches what would go wrong silently: eager attention that adds a boolean
mask, a model that combines the mask with a causal one, positions that are ignored.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inward.common.bases import checked_base, load_causal_lm, recorded_base, with_cache
from inward.common.files import read_object
from inward.common.ragged import RaggedCache, beyond_keys
from inward.common.reach import (
    ALL,
    FAILURES,
    Placed,
    first_position,
    looking,
    nearness,
    quiet,
    reach_of,
)
from inward.common.twins import Twin
from inward.methods.tidar import masks
from inward.methods.tidar.masks import Rows

if TYPE_CHECKING:
    from inward.methods.tidar.model import TiDAR

# --------------------------------------------------------------------------------------------------
# The mask token


@torch.no_grad()
def add_mask_token(
    model: PreTrainedModel, tokenizer: Any = None, *, resize: bool = True, multiple: int = 1
) -> int:
    """Give the model a row for the mask token and return its id.

    The id is one that the tokenizer does not know, so no text can spell it and nothing has to be
    escaped. Many models have such rows (Qwen2.5: 151,936 rows, 151,665 tokens); else, or if no
    tokenizer is given to tell, one is added. The row starts as the mean row.

    Args:
        resize: False: take a spare row or fail.
        multiple: round the new number of rows up to it (64 suits GPUs).

    Raises:
        ValueError: resize=False and the tokenizer leaves no row free.
    """
    size = num_embedded(model)
    known = {size - 1} if tokenizer is None else set(tokenizer.get_vocab().values())
    mask_id = max(known | special_ids(model)) + 1
    if mask_id >= size:
        if not resize:
            raise ValueError(
                f"the tokenizer knows {len(known)} tokens and the model embeds {size}: no id is "
                "free for the mask token; allow resize=True"
            )
        model.resize_token_embeddings(-(-(mask_id + 1) // multiple) * multiple, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    for weight in {id(t.weight): t.weight for t in tables if t is not None}.values():
        weight[mask_id] = mean = weight[:mask_id].float().mean(0).to(weight.dtype)
        weight[size:] = mean
    return mask_id


def tidar_of(model: TiDAR | PreTrainedModel) -> TiDAR | None:
    """The model, if it is a TiDAR model. Asked by what it has: its class knows the decoder, so the
    decoder does not know its class."""
    return cast("TiDAR", model) if "mask_id" in vars(model) else None


def lm_of(model: TiDAR | PreTrainedModel) -> PreTrainedModel:
    """The causal LM within, or the model itself."""
    tidar = tidar_of(model)
    return cast(PreTrainedModel, model) if tidar is None else tidar.model


def num_embedded(model: PreTrainedModel) -> int:
    """Rows of the embedding: ids 0 to this number - 1 can be read."""
    return cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]


def refuse_mask(input_ids: Tensor, mask_id: int) -> None:
    """Raise ValueError if a prompt holds the mask id: it would be read as a place to draft."""
    if bool((input_ids == mask_id).any()):
        raise ValueError(
            f"the prompt holds the mask token (id {mask_id}); it is no text. Spell it with "
            "ordinary tokens: tokenizer(text, split_special_tokens=True)"
        )


def special_ids(model: PreTrainedModel) -> set[int]:
    """Ids that the model's configuration gives a meaning: beginning, end, padding."""
    found: set[Any] = set()
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        value = getattr(model.config.get_text_config(), name, None)
        found |= set(value if isinstance(value, list) else [value])
    return {value for value in found if isinstance(value, int)}


# --------------------------------------------------------------------------------------------------
# Does the model do what the mask says?


def context_limit(model: PreTrainedModel) -> int:
    """Tokens of a text, prompt and answer, that the model has positions for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit - first_position(model) if limit and limit > 0 else 2**31  # -1: XLNet's "none"


_HONEST: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_masks_once(model: PreTrainedModel) -> None:
    """`check_masks`, whose forwards a model that has passed is spared."""
    if model not in _HONEST:
        check_masks(model)
        _HONEST.add(model)


def check_masks(model: PreTrainedModel) -> None:
    """Find out with a few tiny forwards whether the model honours a 4-D mask, positions, and a
    cache whose texts have lengths of their own.

    Raises:
        ValueError: it does not; the class, what went wrong and what it is about it are named.
    """
    own = Twin(model).model
    with quiet(own):
        try:
            wrong = _broken_promises(own) or _broken_cache(own)
        except FAILURES as error:
            wrong = [f"its forward fails ({type(error).__name__}: {str(error)[:200]})"]
    if wrong:
        form = model.config._attn_implementation
        usual = form in ("sdpa", "eager")
        remedy = "" if usual else '; load it with attn_implementation="sdpa" or "eager"'
        raise ValueError(
            f"{type(model).__name__} with {form} attention cannot draft: {'; '.join(wrong)}"
            f"{_about(model)}. TiDAR needs a model that looks where a 4-D attention mask lets it "
            f"look, whatever the order of its input{remedy}"
        )


def check_embeddings(model: PreTrainedModel) -> None:
    """Raise ValueError unless embeddings may stand for the tokens, as they do where the row of the
    mask token belongs to an adapter."""
    ids = tokens_for(model, 6, 2)[None]
    own = Twin(model).model
    with quiet(own):
        want = own(input_ids=ids, use_cache=False).logits.float()
        embeds = cast(nn.Module, own.get_input_embeddings())(ids)
        try:
            got = own(inputs_embeds=embeds, use_cache=False).logits.float()
        except FAILURES as error:
            got = torch.full_like(want, torch.nan)
            told = f" ({type(error).__name__}: {str(error)[:200]})"
        else:
            told = ""
    if not float((got - want).abs().max()) <= nearness(model.dtype) * float(want.abs().max()):
        raise ValueError(
            f"{type(model).__name__} makes more of a token than its embedding: with inputs_embeds "
            f"it gives other logits than with the tokens that they stand for{told}. An adapter "
            "with a mask token of its own cannot work with it; add_mask_token(model), and "
            "DraftAdapter(own_mask=False)"
        )


def _about(model: PreTrainedModel) -> str:
    """What it is about a model that may explain it."""
    config: Any = model.config.get_text_config(decoder=True)
    if kept := beyond_keys(model):
        return f". It keeps its past in {kept}: a state that a draft cannot be taken out of again"
    if getattr(config, "is_decoder", True) is False:
        return ". Its config says is_decoder=False: load it with is_decoder=True"
    if getattr(config, "alibi", False) or hasattr(model.base_model, "build_mpt_alibi_tensor"):
        return ". Its ALiBi biases count the columns of a 2-D mask"
    if hasattr(model.base_model, "build_alibi_tensor"):
        return ". Its ALiBi biases count the columns of a 2-D mask"
    if "position_ids" not in signature(model.forward).parameters:
        return ". Its forward takes no position_ids: it counts positions in columns"
    return ""


def _broken_promises(model: PreTrainedModel) -> list[str]:
    S, K, tries = 6, 2, 4
    rows = masks.training(S, K, offset=1).to(model.device)  # blocks 0 | 1 2 | 3 4 | 5
    looks = looks_of(model, rows)
    if isinstance(looks, Tensor):
        looks = masks.additive(looks, model.dtype)
    # Several tokens, because two that were never trained may have the same embedding. Rows that a
    # token does not reach keep their bits: the shapes are the same.
    drawn = tokens_for(model, 2 * S + tries, 0)
    ids, others = drawn[: 2 * S].repeat(tries, 1), drawn[2 * S :]
    positions = rows.position.expand(tries, -1) + first_position(model)
    reach = reach_of(model)

    def run(ids: Tensor) -> Tensor:
        with looking(looks, tries, 2 * S, reach) as handed:
            options = {"position_ids": positions, "attention_mask": handed, "use_cache": False}
            return model(ids, **options).logits.float()

    def moved(place: int) -> list[int]:
        changed = ids.clone()
        changed[:, place] = others
        return (run(changed) != usual).any(2).any(0).nonzero()[:, 0].tolist()

    usual = run(ids)
    wrong = []
    plain = model(ids[:, :S], use_cache=False).logits.float()
    near = nearness(model.dtype)
    if float((plain - usual[:, :S]).abs().max()) > near * float(plain.abs().max()):
        wrong.append("clean rows differ from a plain forward")
    # the block at 5 is one token after five: to be what a plain forward of these six ends with
    alone = model(torch.cat([ids[:, :5], ids[:, -1:]], 1), use_cache=False).logits[:, -1].float()
    if float((alone - usual[:, -1]).abs().max()) > near * float(plain.abs().max()):
        wrong.append("position_ids are not heeded")
    # clean token 3 is seen by clean rows 3.. and by the mask row of the block that starts at 5
    if reach >= S and moved(3) != [3, 4, 5, S + 5]:
        wrong.append("a clean token is seen by the wrong rows")
    if moved(S + 4) != [S + 3, S + 4]:
        wrong.append("a mask block does not see itself, both ways and alone")
    return wrong


def tokens_for(model: PreTrainedModel, num: int, seed: int) -> Tensor:
    """Any tokens but the padding, which RoBERTa and its kin count no position for."""
    size = num_embedded(model)
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    drawn = torch.randint(size - 1, (num,), generator=torch.Generator().manual_seed(seed))
    if isinstance(pad, int) and 0 <= pad < size:
        drawn = drawn + (drawn >= pad)
    return drawn.to(model.device)


def _broken_cache(model: PreTrainedModel) -> list[str]:
    """Two texts of two and five tokens, then two more each, in a cache of ours."""
    first, reach, device = first_position(model), reach_of(model), model.device
    ids = tokens_for(model, 14, 1).reshape(2, 7)
    cache = RaggedCache(2, 8)
    places = torch.arange(7, device=device)

    def run(ids: Tensor, at: Tensor, mask: Any) -> Tensor:
        options = {"attention_mask": mask, "position_ids": at + first, "use_cache": True}
        with looking(mask, 2, at.shape[1], reach) as handed:
            options |= {"attention_mask": handed, "cache": cache}
            return model(ids, **with_cache(model, options)).logits.float()

    cache.begin(5, device)
    run(ids[:, :5], places[None, :5].expand(2, 5), None)
    cache.commit([2, 5])
    cache.begin(2, device)
    at = torch.stack([places[2:4], places[5:7]])
    key = places[None].expand(2, 7)
    allowed = (key[:, None] <= at[:, :, None])[:, None]
    mask: Any = Placed(allowed, at, key)
    said = run(ids.gather(1, at), at, mask if reach < 7 else masks.additive(allowed, model.dtype))
    for row, length in enumerate((4, 7)):
        alone = model(ids[row : row + 1, :length], use_cache=False).logits[0, -2:].float()
        if float((alone - said[row]).abs().max()) > nearness(model.dtype) * float(
            alone.abs().max()
        ):
            return ["texts of unequal lengths in a cache change each other"]
    return []


def looks_of(model: PreTrainedModel, rows: Rows, prefix: Rows | None = None) -> Any:
    """Who of `rows` (B, n) looks at whom, cached rows `prefix` first, in the form in which
    `inward.common.reach.looking` hands it to the model: additive, by position where texts are
    longer than its shortest window, or a BlockMask.

    Raises:
        ValueError: FlexAttention, and text beyond a window.
    """
    (B, n), device = rows.shape, rows.position.device
    keys = rows if prefix is None else masks.joined(prefix, rows)
    predicate, num = masks.sees(rows, prefix), keys.shape[1]
    reach, flex = reach_of(model), model.config._attn_implementation == "flex_attention"
    far = reach < ALL and int(rows.position.max()) >= reach
    if flex and far:
        raise ValueError(
            f"a text of {int(rows.position.max()) + 1} tokens is longer than the window of {reach} "
            "of this model, and with FlexAttention its masks are ours alone; load it with "
            'attn_implementation="sdpa", or cut the text'
        )
    if flex:
        return masks.block(predicate, n, num, num_samples=B, device=device)
    allowed = masks.dense(predicate, n, num, num_samples=B, device=device)
    return Placed(allowed, rows.position, keys.position) if far else allowed


# --------------------------------------------------------------------------------------------------
# Is the head apart?

_SPLITS: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@torch.no_grad()
def splits(model: PreTrainedModel) -> bool:
    """True if the model's logits are its output embedding applied to its backbone's last hidden
    state, to the last bit; found out with two tokens, once per model."""
    if model not in _SPLITS:
        _SPLITS[model] = _try_split(Twin(model).model)  # dropout would make them differ
    return _SPLITS[model]


def _try_split(model: PreTrainedModel) -> bool:
    backbone, head = model.base_model, model.get_output_embeddings()
    if backbone is model or head is None:
        return False
    ids = torch.tensor([[1, 0]], device=model.device)
    output = backbone(input_ids=ids, use_cache=False)
    hidden = output.get("last_hidden_state")
    if hidden is None:
        return False
    try:
        own = head(hidden)
    except RuntimeError:  # something lies between that changes the width
        return False
    return torch.equal(own, model(input_ids=ids, use_cache=False).logits)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model: its longest list of modules of one class; [] if it has none, or if
    they share weights, with each other or with the rest."""
    lists = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len({type(part) for part in module}) == 1
    ]
    longest = max(lists, key=len, default=[])
    owners: dict[int, int] = {}
    for _, param in model.named_parameters(remove_duplicate=False):
        owners[id(param)] = owners.get(id(param), 0) + 1
    alone = all(owners[id(param)] == 1 for block in longest for param in block.parameters())
    return longest if alone else []


# --------------------------------------------------------------------------------------------------
# The model that an adapter belongs to


def find_base_model(
    folder: Path,
    base: PreTrainedModel | str | Path | None,
    saved: Mapping[str, Any],
    options: dict[str, Any],
) -> PreTrainedModel:
    """The model an adapter in `folder` belongs to, by what was `saved` with it in tidar.json if
    nothing else tells; see `TiDAR.from_pretrained`."""
    record = saved.get("below", {})
    if isinstance(base, PreTrainedModel):
        return checked_base(base, record, "the model given as base")
    if base is not None:
        if not str(base):
            raise FileNotFoundError(
                f"base is {str(base)!r}, which is no folder; give the model that the adapter in "
                f"{folder} belongs to, or its folder"
            )
        return checked_base(load_causal_lm(base, **options), record, base)
    if (folder / "base" / "config.json").exists():
        return load_causal_lm(folder / "base", **options)
    if not record:  # of earlier versions and of others
        name = saved.get("base")
        if name is None:
            config = read_object(folder / "adapter_config.json")
            name = config.get("base_model_name_or_path") or ""
        record = {"name": name}
    return recorded_base(record, folder, **options)


def base_name(model: PreTrainedModel) -> str:
    """Name of a model for other people's eyes: of a local folder the last part only."""
    name = model.config._name_or_path or ""
    return Path(name).name if Path(name).exists() else name
