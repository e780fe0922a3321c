"""Training text that the base model says itself, so that drafts learn its distribution."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from inward.common.bases import fingerprint


def own_text(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    path: str | Path | None,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Let the plain model continue prompts; returns (prompt, continuation) pairs.

    They are kept in `path`, JSON lines: the same call goes on where it was killed and has the same
    result, because each batch draws from a seed of its own. The file says which model wrote it
    (`inward.common.bases.fingerprint`). A continuation ends with the first
    end-of-text token, which belongs to it.

    Args:
        prompts: token ids, none empty.
        path: None: a file in runs/own-text that is named after the model and the call.
        temperature: 0 is greedy: the text that greedy decoding will have to draft.
        progress: called with (done, all) after each batch.

    Raises:
        ValueError: an empty prompt, or `path` holds text that another call or another model made.
    """
    if not all(prompts) or not prompts:
        raise ValueError("a prompt without tokens cannot be continued; begin it with a first token")
    call = {
        "inward": "own text",
        "base": fingerprint(model),
        "prompts": hashlib.sha256(json.dumps([list(p) for p in prompts]).encode()).hexdigest(),
        "num_prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "batch_size": batch_size,
        "seed": seed,
    }
    path = _kept_in(model, call) if path is None else Path(path)
    done = _resume(path, call)
    with path.open("a", encoding="utf-8") as file:
        for first in range(len(done), len(prompts), batch_size):
            chosen = prompts[first : first + batch_size]
            mixed = np.random.SeedSequence([seed, first]).generate_state(1, np.uint64)
            with torch.random.fork_rng(devices=_devices(model)):
                torch.manual_seed(int(mixed[0] >> np.uint64(1)))
                made = _continue(model, chosen, max_new_tokens, temperature)
            file.writelines(json.dumps(text) + "\n" for text in made)
            file.flush()
            os.fsync(file.fileno())
            done += made
            if progress is not None:
                progress(len(done), len(prompts))
    return list(zip([list(p) for p in prompts], done, strict=True))


def _kept_in(model: PreTrainedModel, call: dict[str, Any]) -> Path:
    """A file of its own in runs/own-text for what this model says to these prompts."""
    mark = hashlib.sha256(json.dumps(call, sort_keys=True).encode()).hexdigest()[:12]
    name = Path(model.config._name_or_path or "model").name
    return Path("runs/own-text") / f"{name}-{mark}.jsonl"


def _devices(model: PreTrainedModel) -> list[int]:
    """GPUs whose random state a batch touches."""
    return [model.device.index or 0] if model.device.type == "cuda" else []


def _resume(path: Path, call: dict[str, Any]) -> list[list[int]]:
    """Continuations of whole batches already in the file; what a kill left behind them is cut."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if not whole:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(call) + "\n", encoding="utf-8")
        return []
    before = _row(path, whole, 0)
    if before != call:
        differing = [n for n in call if not isinstance(before, dict) or before.get(n) != call[n]]
        if "base" in differing:
            raise ValueError(
                f"{path} holds text that another model wrote, and drafts are learned from the "
                "model's own; give another path, or remove the file"
            )
        raise ValueError(
            f"{path} holds text made by another call (different: {', '.join(differing)}); give the "
            "same arguments or another path"
        )
    size, texts = call["batch_size"], whole[1:]
    finished = len(texts) >= call["num_prompts"]
    kept = texts if finished else texts[: len(texts) // size * size]
    with path.open("r+b") as file:
        file.truncate(sum(map(len, whole[: 1 + len(kept)])))
    return [_row(path, whole, 1 + i) for i in range(len(kept))]


def _row(path: Path, lines: list[bytes], row: int) -> Any:
    try:
        return json.loads(lines[row])
    except ValueError as error:
        raise ValueError(
            f"{path}, line {row + 1} is no JSON: {error}; remove the file, or name another"
        ) from error


@torch.no_grad()
def _continue(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    real = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        real[i, longest - len(prompt) :] = 1
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    options = sampling if temperature > 0 else {"do_sample": False}
    out = cast(Any, model).generate(
        ids.to(model.device),
        attention_mask=real.to(model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=0,
        **options,
    )
    ends = cast(Any, model).generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    return [_until_end(row, ends) for row in out[:, longest:].tolist()]


def _until_end(ids: list[int], ends: set[int | None]) -> list[int]:
    """Up to and with the first end-of-text token."""
    stop = next((place for place, i in enumerate(ids) if i in ends), len(ids))
    return ids[: stop + 1]
