"""TiDAR: draft by diffusion, speak autoregressively, in one forward. Training, and the model.

"TiDAR: Think in Diffusion, Talk in Autoregression", Liu et al. 2025, arXiv 2511.08923.

    input      [x_0 .. x_{S-1} | M .. M], S clean tokens and S mask tokens        (section 3.1)
    positions  0 .. S-1 twice: a mask token stands where the token it predicts stands
    mask       `inward.methods.tidar.masks.training`: clean rows causal; a mask row sees the clean
    tokens strictly
               before its block and, both ways, the mask rows of its block        (figure 3, left)
    labels     clean row i predicts x_{i+1}; mask row i predicts x_i, not shifted
               (`TiDARSettings.shifted`: x_{i+1} too, and a block has one mask less)
    loss       1/(1+alpha) * (alpha * sum CE_AR + sum CE_diffusion) / number of targets

What is unusual: there is no transformer here. `TiDAR` wraps any causal language model of
transformers and gives it a mask, positions and a token of its own; decoding is in decoder.py.
Mask rows alone are mask rows, so weights that act on them only (adapter.py) draft for a model
whose words stay what they were.

Where we differ from the paper's text, and why:

    topic              paper               here
    first and last     the diffusion sum   both sums run over the same targets, x_1 .. x_{S-1}: the
                       runs over the       first token of a text is nobody's prediction (its mask
                       first S - 1 masks   row would have to guess from nothing)
    alpha              in [0, 1]           any positive weight; the paper's figure 6 tries 1.2
    block grid         multiples of K      random offset by default: decoding meets every length
    normalisation      S - 1 per sample    targets of the global batch (`batch["weight"]`), so that
                                           a step does not depend on how its batch is cut
    a mask typed by    -                   refused; its id has no text that could spell it
    a user

Shape letters: B samples, S clean tokens, K block size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from inward.common import IGNORE
from inward.common.bases import (
    base_record,
    holds_tokenizer,
    load_causal_lm,
    open_tokenizer,
    run_layers_again,
    with_cache,
)
from inward.common.draws import Batch, Draws, Loss
from inward.common.files import read_object, reading, write_json
from inward.common.reach import first_position, looking, reach_of
from inward.methods.tidar import masks
from inward.methods.tidar.base import (
    base_name,
    blocks_of,
    check_embeddings,
    check_masks,
    context_limit,
    find_base_model,
    looks_of,
    num_embedded,
    special_ids,
    splits,
)
from inward.methods.tidar.decode import continued
from inward.methods.tidar.losses import Unread, branch
from inward.methods.tidar.masks import Rows
from inward.methods.tidar.samples import (
    Part,
    doubled,
    draft_branch,
    draft_part,
    hidden_tokens,
    next_targets,
    targets,
    training_rows,
)
from inward.methods.tidar.settings import TiDARSettings

if TYPE_CHECKING:
    from inward.methods.tidar.adapter import DraftAdapter

SETTINGS_FILE = "tidar.json"


class TiDAR(nn.Module):
    """A causal language model of transformers that also drafts.

    model     any AutoModelForCausalLM that honours 4-D masks (`check_masks` finds out)
    mask_id   id of the mask token: a row of the model's embedding (`add_mask_token`), or the
              adapter's own row if the id lies beyond the vocabulary
    settings  or just a block size
    adapter   draft-only weights; then the model is frozen and only they are trained
    tokenizer saved and loaded with the model
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mask_id: int,
        settings: TiDARSettings | int = 8,
        *,
        adapter: DraftAdapter | None = None,
        tokenizer: Any = None,
        probe: bool = True,
    ) -> None:
        """probe: make sure that the model honours the mask (a few tiny forwards).

        Raises:
            ValueError: it does not; or the mask id has no row, or is another special token's.
        """
        super().__init__()
        if not isinstance(settings, TiDARSettings):
            settings = TiDARSettings(block_size=settings)
        self.model = model
        self.mask_id = mask_id
        self.settings = settings
        self.adapter = adapter
        self.tokenizer = tokenizer
        self._check_mask_id()
        asked = settings.steps or settings.draft_steps
        if asked and "num_steps" not in getattr(model, "per_position", ()):
            raise ValueError(
                f"steps is {settings.steps} and draft_steps {settings.draft_steps}, but "
                f"{type(model).__name__} takes no depth for each position; leave them 0"
            )
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        if probe:
            check_masks(model)
        if probe and adapter is not None and adapter.mask_embedding is not None:
            check_embeddings(model)
        if adapter is not None:
            adapter.attach(model)
            model.requires_grad_(False)
            # what is frozen lies in the model's own folder; resume states need not repeat it
            self.register_state_dict_post_hook(_without_model)

    def _check_mask_id(self) -> None:
        size = num_embedded(self.model)
        if not isinstance(self.mask_id, int) or isinstance(self.mask_id, bool):
            raise ValueError(f"mask_id is {self.mask_id!r}, must be a token's id")
        own = self.adapter is not None and self.adapter.mask_embedding is not None
        if self.mask_id < 0 or (self.mask_id >= size and not own):
            raise ValueError(
                f"mask_id is {self.mask_id}, but the model embeds ids 0..{size - 1}; "
                "use inward.methods.tidar.base.add_mask_token(model) to give it a row"
            )
        if self.mask_id in special_ids(self.model):
            raise ValueError(
                f"mask_id {self.mask_id} is already the end, padding or beginning token; the mask "
                "needs an id of its own: add_mask_token(model)"
            )

    @property
    def block_size(self) -> int:
        """K of training; decoding may use less."""
        return self.settings.block_size

    @property
    def config(self) -> Any:
        """The wrapped model's."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The wrapped model's."""
        return self.model.device

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor,
        attention_mask: Any,
        draft_rows: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        unread: bool = False,
        **options: Any,
    ) -> Any:
        """One forward of the wrapped model; the output's logits never favour the mask token.

        Args:
            input_ids: (B, n); may hold the mask id.
            position_ids: (B or 1, n).
            attention_mask: (B or 1, 1, n, cached + n) bool, True = may look; the additive form;
                `Placed`, where texts are longer than a window of the model; or a BlockMask for a
                model that runs FlexAttention. `base.looks_of` makes the right one.
            draft_rows: (B, n) bool, the rows that an adapter acts on; default those that hold the
                mask id.
            logits_to_keep: as in transformers: the last so many rows, or a 1-D index tensor.
            unread: stop before the vocabulary head; only for a model that `splits`.
            options: cache (or past_key_values), use_cache, and whatever else the model takes.
        """
        self._check_ids(input_ids)
        masked = input_ids == self.mask_id
        if self._keeps_logits and not unread:
            options["logits_to_keep"] = logits_to_keep
        model, (B, n) = self.model.base_model if unread else self.model, input_ids.shape
        looks = looking(self._mask(attention_mask), B, n, reach_of(self.model))
        with self._acting(masked if draft_rows is None else draft_rows), looks as handed:
            output = model(
                **self._embedded(input_ids, masked),
                position_ids=position_ids.expand(B, -1) + first_position(self.model),
                attention_mask=handed,
                **with_cache(model, options),
            )
        if unread:
            return output
        if not self._keeps_logits:
            number = isinstance(logits_to_keep, int)
            keep = slice(-logits_to_keep or None, None) if number else logits_to_keep
            output.logits = output.logits[:, keep]
        output.logits = self.ban(output.logits)
        return output

    def ban(self, logits: Tensor) -> Tensor:
        """The mask token is no answer: its logit becomes -inf, in both branches."""
        if self.mask_id >= logits.shape[-1]:
            return logits
        if logits.requires_grad:
            index = torch.tensor([self.mask_id], device=logits.device)
            return logits.index_fill(-1, index, -torch.inf)
        logits[..., self.mask_id] = -torch.inf
        return logits

    def _acting(self, rows: Tensor) -> Any:
        return nullcontext() if self.adapter is None else self.adapter.acting_on(rows)

    def _embedded(self, input_ids: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """Ids, or embeddings where the mask token's row belongs to the adapter."""
        adapter = self.adapter
        if adapter is None or adapter.mask_embedding is None:
            return {"input_ids": input_ids}
        embeds = self.model.get_input_embeddings()(input_ids.masked_fill(masked, 0))
        row = adapter.mask_embedding.to(embeds.dtype)
        return {"inputs_embeds": torch.where(masked[..., None], row, embeds)}

    def _mask(self, attention_mask: Any) -> Any:
        if not isinstance(attention_mask, Tensor) or attention_mask.dtype != torch.bool:
            return attention_mask
        kind = attention_mask.device.type
        dtype = self.model.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return masks.additive(attention_mask, dtype)

    # -- training ----------------------------------------------------------------------------------

    def sharded_blocks(self) -> list[nn.Module]:
        """The layers below, which a forward runs once or twice (`inward.train.sharding`)."""
        splits(self.model)  # found out while the model is whole
        return blocks_of(self.model)

    def recompute_in_backward(self) -> None:
        """Run the layers again in the backward pass instead of keeping what they computed."""
        if self.adapter is not None:
            raise ValueError(
                "recompute: an adapter's clean half hands on its keys and values, which layers "
                "that run again do not keep; leave it out (the clean half keeps nothing else)"
            )
        run_layers_again(self.model)

    def loss(self, batch: Batch, state: dict[str, Tensor] | None, draws: Draws | None) -> Loss:
        """Joint loss, a sum over targets; with an adapter the diffusion part alone.

        Args:
            batch: input_ids (B, S); weight, the number of targets (see `targets`); optionally
                documents (B, S), -1 for padding, and supervised (B, S) bool. Padding at the right
                of samples with one text each needs no documents: nothing real looks at it.
            state: nothing is carried.
            draws: grid offset, and what is masked. None: fixed grid, full masking (evaluation).

        Raises:
            ValueError: no weight; the mask id among the clean tokens; too long for the model.
        """
        self._check_batch(batch)
        rows = training_rows(batch, self.settings, draws)
        hidden = hidden_tokens(batch["input_ids"].shape[1], self.settings, draws)
        parts = [
            checkpoint(self._loss_of, part, use_reentrant=False) if again else self._loss_of(part)
            for part, again in self._parts(batch, rows, hidden)
        ]
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        return self._combine(cast("dict[str, Tensor]", sums))

    def _combine(self, sums: dict[str, Tensor]) -> Loss:
        alpha = self.settings.alpha
        total = sums["draft_loss"]
        if self.adapter is None:
            total = (alpha * sums["ar_loss"] + sums["draft_loss"]) / (1 + alpha)
        names = [name for name in sums if name != "count"]
        metrics = {name: (sums[name].detach(), sums["count"]) for name in names}
        return Loss(total=total, metrics=metrics)

    def _parts(
        self, batch: Batch, rows: Rows, hidden: tuple[Tensor, Tensor] | None
    ) -> Iterator[tuple[Part, bool]]:
        """The batch in pieces that share one mask, and whether a piece is recomputed in backward
        (settings.dense_masks)."""
        ids, wanted = batch["input_ids"], targets(batch, rows)
        wanted = wanted.expand_as(ids)
        B, alone = ids.shape[0], self.settings.dense_masks == "one" and not self._flex
        if rows.shape[0] == 1 or not alone:
            yield Part(ids, wanted, rows, hidden), False
            return
        for i in range(B):
            piece = slice(i, i + 1)
            own = None if hidden is None else (hidden[0][piece], hidden[1][piece])
            yield Part(ids[piece], wanted[piece], rows.sample(i), own), B > 1

    @property
    def _flex(self) -> bool:
        return self.model.config._attn_implementation == "flex_attention"

    def _loss_of(self, part: Part) -> dict[str, Tensor]:
        if self.adapter is not None:
            return self.adapter.losses(self, part)
        logits = self.read_or_not(part)
        S = part.ids.shape[1]
        clean, masked = (
            logits[:, rows] if isinstance(logits, Tensor) else logits.select(rows.start, rows.stop)
            for rows in (slice(0, S), slice(S, None))
        )
        ar = branch("ar", clean, next_targets(part.wanted), None)
        draft = draft_branch(masked, draft_part(part, self.settings), self.settings)
        return ar | draft | {"count": (part.wanted != IGNORE).sum()}

    def scores(self, input_ids: Tensor, **inputs: Any) -> Tensor | Unread:
        """Logits (B, n, V) of all rows of a forward; unread where settings.max_logits forbids."""
        V, limit = num_embedded(self.model), self.settings.max_logits
        if not limit or input_ids.numel() * V <= limit or not splits(self.model):
            return self(input_ids, **inputs).logits
        head = cast(nn.Module, self.model.get_output_embeddings())
        hidden = self(input_ids, unread=True, **inputs).last_hidden_state
        return Unread(hidden, lambda rows: self.ban(head(rows)), max(1, limit // V))

    def logits(self, part: Part) -> Tensor:
        """(B, 2S, V) of the doubled sequence."""
        return self(**self._inputs(part)).logits

    def read_or_not(self, part: Part) -> Tensor | Unread:
        """The same, see `scores`."""
        return self.scores(**self._inputs(part))

    def _inputs(self, part: Part) -> dict[str, Any]:
        ids = doubled(part.ids, self.mask_id, None if part.hidden is None else part.hidden[0])
        n, mask = ids.shape[1], looks_of(self.model, part.rows)
        second_half = torch.arange(n, device=ids.device).expand_as(ids) >= n // 2
        return {
            "input_ids": ids,
            "position_ids": part.rows.position,
            "attention_mask": mask,
            "draft_rows": second_half,
            "use_cache": False,
            **self.depths(second_half),
        }

    def depths(self, draft_rows: Tensor | None) -> dict[str, Any]:
        """The depth of each row (B, n), or of all of them, as settings.steps and draft_steps say;
        nothing where they say nothing. draft_rows: (B, n) bool; None: there are none."""
        steps, drafts = self.settings.steps, self.settings.draft_steps
        if not steps and not drafts:
            return {}
        steps = steps or cast(Any, self.model).per_position["num_steps"]
        if draft_rows is None or not drafts:
            return {"num_steps": steps}
        return {"num_steps": torch.where(draft_rows, drafts, steps)}

    def _check_ids(self, ids: Any) -> None:
        """Before an embedding table says that an index is out of range."""
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.long, torch.int):
            kind = ids.dtype if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise ValueError(f"input_ids is {kind}, must be a tensor of integers")
        if not ids.numel():
            return
        size = num_embedded(self.model)
        low, high = (int(found) for found in ids.masked_fill(ids == self.mask_id, 0).aminmax())
        if low < 0 or high >= size:
            raise ValueError(f"input_ids run from {low} to {high}, the model knows 0 to {size - 1}")

    def _check_batch(self, batch: Batch) -> None:
        ids = batch["input_ids"]
        self._check_ids(ids)
        if "weight" not in batch:
            raise ValueError(
                "the batch has no weight, the number of tokens to predict, by which the loop "
                "divides; add it as inward.data.texts.packed does"
            )
        if bool((ids == self.mask_id).any()):
            raise ValueError(
                f"the mask id {self.mask_id} is among the clean tokens of the batch, padding "
                "included; it must not occur in data: pad with another token"
            )
        limit = context_limit(self.model)
        if ids.shape[1] > limit:
            raise ValueError(
                f"samples have {ids.shape[1]} tokens, this model has positions for {limit}; cut "
                "them shorter"
            )

    # -- decoding ----------------------------------------------------------------------------------

    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        """(B, S + longest) ids: the prompts as they are, padding included, then what the model
        says, shorter texts padded at the right; with return_dict_in_generate transformers' output.

        Args:
            input_ids: (B, S) prompts. attention_mask: (B, S), 0 on padding, at either side.
            options: of transformers' generate (fields of its configuration, streamer, processors,
                criteria: each acts or is refused, see `inward.common.generation`); fields of
                `DecodeSettings`: scheme, K, ...; rule and seed, with do_sample=True; or sampling=
                in their place; pad_id, else the padding token of the generation config.
                max_new_tokens=None: up to the end of the context.

        Raises:
            ValueError: see `decode`.
        """
        return continued(self, input_ids, attention_mask, **options)

    # -- saving ------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the model's own files, its tokenizer and tidar.json; with an adapter its files
        (PEFT format) in place of the model's, which did not change."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapter is None:
            self.model.save_pretrained(folder, **options)
        else:
            self.adapter.save_pretrained(folder, base=base_name(self.model))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        content = {"mask_id": self.mask_id, "settings": asdict(self.settings)}
        content |= {"adapter": self.adapter is not None, "base": base_name(self.model)}
        if self.adapter is not None:
            content["below"] = base_record(self.model, folder)
        # last, so that a folder with this file is complete
        write_json(folder / SETTINGS_FILE, content)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, base: PreTrainedModel | str | Path | None = None, **options: Any
    ) -> TiDAR:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Args:
            base: the model an adapter belongs to, or its folder; default: base/ in the adapter's
                folder, if there is one, else where tidar.json says that it lies as seen from the
                folder, or by its name in $INWARD_MODELS.
            options: for the model's own from_pretrained (dtype, attn_implementation, ...).

        Raises:
            FileNotFoundError: there is no tidar.json, or no base at that path.
            ValueError: files do not fit each other.
        """
        with reading(folder):
            return cls._read(Path(folder), base, options)

    @classmethod
    def _read(
        cls, folder: Path, base: PreTrainedModel | str | Path | None, options: dict[str, Any]
    ) -> TiDAR:
        if not (folder / SETTINGS_FILE).exists():
            raise FileNotFoundError(f"{folder} holds no TiDAR model: there is no {SETTINGS_FILE}")
        saved = read_object(folder / SETTINGS_FILE, "settings", "adapter", "mask_id")
        settings, adapter = TiDARSettings(**saved["settings"]), None
        tokenizer = _tokenizer_in(folder)
        if not saved["adapter"]:
            model = load_causal_lm(folder, **options)
            return cls(model, saved["mask_id"], settings, tokenizer=tokenizer).eval()
        from inward.methods.tidar.adapter import DraftAdapter

        model = find_base_model(folder, base, saved, options)
        adapter = DraftAdapter.from_pretrained(folder, model)
        more = {"adapter": adapter, "tokenizer": tokenizer}
        return cls(model, saved["mask_id"], settings, **more).eval()


def _tokenizer_in(folder: Path) -> Any:
    """The tokenizer in a model's folder; None: there is none."""
    return open_tokenizer(folder) if holds_tokenizer(folder) else None


def _without_model(module: nn.Module, tensors: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in [name for name in tensors if name.startswith(f"{prefix}model.")]:
        del tensors[name]
