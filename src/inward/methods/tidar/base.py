"""What TiDAR asks of the model it wraps: a row for the mask token, and attention that obeys a mask.

Both are found out on the model itself: a list of supported classes would be wrong on the day it is
written. The probe also catches what would go wrong silently: eager attention that adds a boolean
mask, a model that combines the mask with a causal one, positions that are ignored.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inward.common.bases import checked_base, load_causal_lm, recorded_base
from inward.common.files import read_object
from inward.common.twins import Twin
from inward.methods.tidar import masks

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
    """Tokens that every layer can attend to: a mask of our own replaces a sliding window's, so
    beyond the window the model would no longer be itself."""
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if "sliding_attention" in kinds and getattr(config, "use_sliding_window", True):
        limits.append(getattr(config, "sliding_window", None))
    return min([limit for limit in limits if limit] or [2**31])


@torch.no_grad()
def check_masks(model: PreTrainedModel) -> None:
    """Find out with a few tiny forwards whether the model honours a 4-D mask and positions.

    Raises:
        ValueError: it does not; the class, its attention and what went wrong are named.
    """
    try:
        wrong = _broken_promises(Twin(model).model)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        wrong = [f"its forward fails ({type(error).__name__}: {str(error)[:200]})"]
    if wrong:
        raise ValueError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention does not "
            f"honour 4-D attention masks: {'; '.join(wrong)}. TiDAR needs an attention model; "
            'load it with attn_implementation="sdpa" or "eager"'
        )


def _broken_promises(model: PreTrainedModel) -> list[str]:
    S, K, tries = 6, 2, 4
    rows = masks.training(S, K, offset=1).to(model.device)  # blocks 0 | 1 2 | 3 4 | 5
    if model.config._attn_implementation == "flex_attention":
        mask: Any = masks.block(masks.sees(rows), 2 * S, device=model.device)
    else:
        mask = masks.dense(masks.sees(rows), 2 * S, device=model.device)
        mask = masks.additive(mask, model.dtype)
    # Several tokens, because two that were never trained may have the same embedding. Rows that a
    # token does not reach keep their bits: the shapes are the same.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(num_embedded(model), (2 * S + tries,), generator=generator)
    others = drawn[2 * S :].to(model.device)
    ids = drawn[: 2 * S].to(model.device).repeat(tries, 1)
    positions = rows.position.expand(tries, -1)

    def run(ids: Tensor) -> Tensor:
        options = {"position_ids": positions, "attention_mask": mask, "use_cache": False}
        return model(ids, **options).logits.float()

    def moved(place: int) -> list[int]:
        changed = ids.clone()
        changed[:, place] = others
        return (run(changed) != usual).any(2).any(0).nonzero()[:, 0].tolist()

    usual = run(ids)
    wrong = []
    plain = model(ids[:, :S], use_cache=False).logits.float()
    near = 0.05 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if float((plain - usual[:, :S]).abs().max()) > near * float(plain.abs().max()):
        wrong.append("clean rows differ from a plain forward")
    # the block at 5 is one token after five: to be what a plain forward of these six ends with
    alone = model(torch.cat([ids[:, :5], ids[:, -1:]], 1), use_cache=False).logits[:, -1].float()
    if float((alone - usual[:, -1]).abs().max()) > near * float(plain.abs().max()):
        wrong.append("position_ids are not heeded")
    # clean token 3 is seen by clean rows 3.. and by the mask row of the block that starts at 5
    if moved(3) != [3, 4, 5, S + 5]:
        wrong.append("a clean token is seen by the wrong rows")
    if moved(S + 4) != [S + 3, S + 4]:
        wrong.append("a mask block does not see itself, both ways and alone")
    return wrong


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
    return torch.equal(head(hidden), model(input_ids=ids, use_cache=False).logits)


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
