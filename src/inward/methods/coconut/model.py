"""Coconut: feed the last hidden state back as the next input instead of a word.

"Training Large Language Models to Reason in a Continuous Latent Space", Hao et al. 2024,
arXiv 2412.06769. A sample is a list of segments, text or latent (`inward.data.thoughts.segments`);
the paper is the special case of one latent segment after the question, several of them are
interleaved thinking.

    h_t      the vector that the head of the base model reads at position t (after the final norm)
    e_t      the input of position t: the token's embedding, or h_{t-1} inside a latent segment
    thought  such an h_{t-1}; the first of a block is the hidden state at the position before it

There is no transformer in this file: `Coconut` wraps any causal LM that takes `inputs_embeds` and
a cache. What is unusual:

- A thought needs the position before it, so a sequence takes several passes over one growing cache.
  A pass ends where some row needs a new thought. `collate` puts masked columns before each block so
  that block j of all rows starts in the same column: 1 + sum over blocks of the longest of any row,
  and often fewer. Positions skip the masked columns, so a row does not feel its neighbours.
- h is caught at the door of the head (a pre-hook), which makes "the vector the head consumes" true
  by construction, for bases that norm after, before or within the head alike, with adapters or
  without. The hook also cuts what the head gets to see: only the columns whose logits are wanted.
- Labels are shifted when the batch is made, because masked columns may lie between a token and the
  position that predicts it: `labels[r, c]` is what column c shall say next.

Executors: `sequential` (exact, cached), `recompute` (exact, each pass runs the whole prefix again;
slow and obvious), `jacobi` (all thoughts at once, iterated; PCCoT, arXiv 2506.18582).

Where this differs from the released code (facebookresearch/coconut, 27273cb): several blocks a row;
no logits where there is no label; the loss is a sum over tokens that the loop divides by the number
in the whole batch (there: mean per micro-batch); stopping can be learned (`learned_stop`).

Shape letters: B rows, S columns, K thoughts of a row, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from inward.common import IGNORE
from inward.common.bases import with_cache
from inward.common.draws import Draws, Loss
from inward.common.files import reading
from inward.common.reach import Placed, looking
from inward.data.thoughts.columns import LatentBatch, before_thoughts, collate, widened
from inward.data.thoughts.segments import Sample, Specials
from inward.methods.coconut.alarms import alarm_metrics
from inward.methods.coconut.alone import rows_alone
from inward.methods.coconut.base import (
    check_base,
    head_input,
    unwrapped,
    without_frozen,
)
from inward.methods.coconut.cache import new_cache
from inward.methods.coconut.checks import check_batch
from inward.methods.coconut.depths import passes_of
from inward.methods.coconut.feedback import feedback_module, mixed
from inward.methods.coconut.losses import check_spans, extra_losses, superposed_loss
from inward.methods.coconut.manners import manners_of
from inward.methods.coconut.output import CoconutOutput, PassOutput
from inward.methods.coconut.saved import read, save
from inward.methods.coconut.settings import CoconutSettings

Edit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(thoughts (B, d), which rows think here (B,) bool, their number in the row (B,)) -> thoughts.
Called once for every column of thoughts: noise, ablation and swapping go here."""


PerPass = Callable[[int, int], Mapping[str, Any]]
"""(start, stop) of a pass -> further arguments of the base's forward (Huginn: num_steps, state)."""


# --------------------------------------------------------------------------------------------------
# The wrapper


class Coconut(nn.Module):
    """A causal LM that can think in latent segments; see the top of the file.

    Args:
        base: any causal LM of transformers (or our Huginn), with PEFT adapters or without.
        specials: ids of <bot>, <eot> and the placeholder.
        settings: stabilisers and extra losses; the default is the paper's method.
        tokenizer: saved and loaded with the model; names tokens in traces.
        decoder: a causal LM as wide as the base that spells out steps in training
            (`settings.step_decoder`); not saved.

    Raises:
        ValueError: the base cannot think, see `base.check_base`; or a decoder is missing.
    """

    def __init__(
        self,
        base: nn.Module,
        specials: Specials,
        settings: CoconutSettings | None = None,
        *,
        tokenizer: Any = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.accepts = check_base(base, specials)
        self.manners = manners_of(unwrapped(base), self.accepts)
        self.base = cast(PreTrainedModel, base)
        self.specials = specials
        self.settings = settings or CoconutSettings()
        self.tokenizer = tokenizer
        self.feedback = feedback_module(self.settings, self.embedding)
        if self.settings.step_decoder and decoder is None:
            raise ValueError("settings.step_decoder is on, but no decoder was given")
        self.decoder = decoder
        if unwrapped(self.base) is not self.base:
            self.register_state_dict_post_hook(without_frozen)

    @property
    def embedding(self) -> nn.Embedding:
        """The base's token embedding."""
        return cast(nn.Embedding, self.base.get_input_embeddings())

    @property
    def max_positions(self) -> int | None:
        """How many positions the base was built for; None if it does not say."""
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return None if limit is None else limit - self.manners.first

    @property
    def config(self) -> Any:
        """The base's."""
        return unwrapped(self.base).config

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.embedding.weight.device

    def collate(self, samples: Sequence[Sample], **options: Any) -> LatentBatch:
        """`collate` with this model's tokens and context, on its device."""
        options = {"max_positions": self.max_positions} | options
        batch = collate(samples, self.specials, **options)
        return {name: value.to(self.embedding.weight.device) for name, value in batch.items()}

    # -- one pass

    def run(
        self,
        inputs: Tensor,
        attention_mask: Tensor | Placed | None,
        position_ids: Tensor,
        *,
        cache: Cache | None = None,
        wanted: Tensor | None = None,
        layers: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """One forward of the base: (hidden (B, c, d), logits, hidden states of the layers).

        Args:
            inputs: (B, c, d) embeddings of the new columns.
            attention_mask: (B, columns up to and with the new ones); `Placed`; or one that the base
                takes with a cache of its own form.
            position_ids: (B, c) from 0; left out if the base does not take them.
            cache: what came before; it grows. None: nothing came before and nothing is kept.
            wanted: (B, c) bool, the columns whose logits are computed: (N, V). None: (B, c, V).
        """
        manners, (B, c) = self.manners, inputs.shape[:2]
        if "position_ids" in self.accepts:
            kwargs["position_ids"] = position_ids + manners.first if manners.first else position_ids
        if layers:
            kwargs["output_hidden_states"] = True
        mask = attention_mask
        if not manners.together:
            self._refuse_gaps(mask)
            mask = None  # which says as much, and some bases take a full one amiss
        looks = looking(mask, B, c, manners.reach)
        with looks as handed, head_input(self.base, wanted) as caught:
            out = self.base(
                inputs_embeds=inputs.clone() if manners.copies else inputs,
                attention_mask=handed,
                use_cache=cache is not None,
                **with_cache(self.base, {"cache": cache, **kwargs}),
            )
        if len(caught) != 1:
            raise ValueError(
                f"{type(unwrapped(self.base)).__name__} called its output embedding {len(caught)} "
                "times in a forward, must be once: a thought is what the head reads"
            )
        logits = out.logits if wanted is None else out.logits[0]
        return caught[0], logits, tuple(out.hidden_states) if layers else ()

    def _refuse_gaps(self, mask: Tensor | Placed | None) -> None:
        if mask is not None and not (isinstance(mask, Tensor) and bool((mask == 1).all())):
            raise ValueError(
                f"masked columns would change what {type(unwrapped(self.base)).__name__} makes of "
                "the others; call the model, which runs such rows one by one, or give it one row"
            )

    # -- executors: each yields its parts in the order of the columns

    def sequential(
        self,
        batch: LatentBatch,
        *,
        wanted: Tensor | None = None,
        edit: Edit | None = None,
        cache: Cache | None = None,
        layers: bool = False,
        per_pass: PerPass | None = None,
    ) -> Iterator[PassOutput]:
        """Exact and cached: a pass up to each column of thoughts, and one for the rest.

        Args:
            cache: an empty one that the caller wants to go on with; default one for this batch.
        """
        mask, positions, latent = (batch[k] for k in ("attention_mask", "position_ids", "latent"))
        embeds = self.embedding(batch["input_ids"])
        columns = _thought_columns(latent)
        bounds = [0, *columns, latent.shape[1]]
        if self.manners.steps and columns:
            bounds = [0, *range(columns[0], latent.shape[1] + 1)]
        if cache is None and len(bounds) > 2:
            cache = self.new_cache(mask)
        wanted = self.read_columns(wanted, latent)
        before = said = None
        for start, stop in pairwise(bounds):
            inputs, here = embeds[:, start:stop], None if wanted is None else wanted[:, start:stop]
            if before is not None and start in columns:
                first = self.think(before, inputs[:, 0], latent, start, edit, said)
                inputs = torch.cat([first[:, None], inputs[:, 1:]], dim=1)
            hidden, logits, states = self.run(
                inputs,
                mask[:, :stop],
                positions[:, start:stop],
                cache=cache,
                wanted=here,
                layers=layers,
                **({} if per_pass is None else per_pass(start, stop)),
            )
            yield PassOutput(start, stop, inputs, hidden, logits, states)
            before = hidden[:, -1]
            said = _logits_of(logits, here, stop - start - 1) if self.reads_thoughts else None

    def recompute(
        self,
        batch: LatentBatch,
        *,
        wanted: Tensor | None = None,
        edit: Edit | None = None,
        layers: bool = False,
        per_pass: PerPass | None = None,
    ) -> Iterator[PassOutput]:
        """Exact without a cache: every pass runs all columns from the start. Slow and obvious."""
        latent = batch["latent"]
        inputs = self.embedding(batch["input_ids"])
        S, nothing = latent.shape[1], torch.zeros_like(latent)
        wanted = self.read_columns(wanted, latent)
        for column in _thought_columns(latent):
            seen = self.read_columns(nothing, latent)[:, :column]
            hidden, logits, _ = self._whole(batch, inputs[:, :column], seen, False, per_pass)
            said = _logits_of(logits, seen, column - 1) if self.reads_thoughts else None
            thought = self.think(hidden[:, -1], inputs[:, column], latent, column, edit, said)
            rest = inputs[:, column + 1 :]
            inputs = torch.cat([inputs[:, :column], thought[:, None], rest], dim=1)
        yield PassOutput(0, S, inputs, *self._whole(batch, inputs, wanted, layers, per_pass))

    def jacobi(
        self,
        batch: LatentBatch,
        *,
        iterations: int | None = None,
        wanted: Tensor | None = None,
        edit: Edit | None = None,
        layers: bool = False,
        per_pass: PerPass | None = None,
        changes: list[Tensor] | None = None,
    ) -> Iterator[PassOutput]:
        """All thoughts at once, iterated over the whole sequence (PCCoT).

        Thoughts start as the embedding of the placeholder. What a thought depends on lies to its
        left, so after k iterations the first k thoughts of each row are exact, values and
        gradients; iterations=None takes as many as the longest row has thoughts.

        Args:
            changes: gets the relative change of the thoughts at each iteration.
        """
        latent = batch["latent"]
        inputs = self.embedding(batch["input_ids"])
        if iterations is None:
            iterations = int(latent.sum(1).max())
        if iterations < 0:
            raise ValueError(f"iterations is {iterations}, must be 0 or more")
        seen = self.read_columns(torch.zeros_like(latent), latent)
        wanted = self.read_columns(wanted, latent)
        columns = _thought_columns(latent)
        for _ in range(iterations if columns else 0):
            hidden, logits, _ = self._whole(batch, inputs, seen, False, per_pass)
            new = inputs.clone()
            for column in columns:
                said = _logits_of(logits, seen, column - 1) if self.reads_thoughts else None
                before, own = hidden[:, column - 1], inputs[:, column]
                new[:, column] = self.think(before, own, latent, column, edit, said)
            if changes is not None:
                old, now = inputs[latent].detach(), new[latent].detach()
                changes.append((now - old).norm() / now.norm())
            inputs = new
        S = latent.shape[1]
        yield PassOutput(0, S, inputs, *self._whole(batch, inputs, wanted, layers, per_pass))

    def _whole(
        self,
        batch: LatentBatch,
        inputs: Tensor,
        wanted: Tensor | None,
        layers: bool,
        per_pass: PerPass | None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """One pass over the first columns of a batch, without a cache."""
        stop = inputs.shape[1]
        options = {} if per_pass is None else per_pass(0, stop)
        mask, positions = batch["attention_mask"][:, :stop], batch["position_ids"][:, :stop]
        return self.run(inputs, mask, positions, wanted=wanted, layers=layers, **options)

    @property
    def reads_thoughts(self) -> bool:
        """Whether the head reads every thought, because it is made from what the head says."""
        return self.settings.feedback == "mixture"

    def read_columns(self, wanted: Tensor | None, latent: Tensor) -> Any:
        """Columns (B, S) whose logits are computed: those wanted (None: all), and where
        `reads_thoughts` those that thoughts come from."""
        if wanted is None or not self.reads_thoughts:
            return wanted
        return wanted | before_thoughts(latent)

    def fed(self, hidden: Tensor, said: Tensor | None) -> Tensor:
        """(B, d) the next inputs that thoughts are, from hidden states (B, d) and, where
        `reads_thoughts`, what the head said of them (B, V)."""
        if not self.reads_thoughts:
            return self.feedback(hidden)
        assert said is not None, "the head has read them"
        return mixed(widened(said), self.embedding)

    def think(
        self,
        before: Tensor,
        otherwise: Tensor,
        latent: Tensor,
        column: int,
        edit: Edit | None,
        said: Tensor | None = None,
    ) -> Tensor:
        """(B, d) inputs of a column: the fed-back state where a row thinks there, else `otherwise`.

        Args:
            before: (B, d) hidden states of the column before; said: (B, V) its logits, see `fed`.
            otherwise: (B, d) embeddings of the tokens.
        """
        thought = self.fed(before, said).to(otherwise.dtype)
        if edit is not None:
            number = latent[:, :column].sum(1)
            thought = edit(thought, latent[:, column], number)
        return torch.where(latent[:, column, None], thought, otherwise)

    def new_cache(self, attention_mask: Tensor) -> Cache:
        """An empty cache for a batch; see `base.new_cache`.

        Raises:
            ValueError: gradient checkpointing is on, which makes bases drop their cache.
        """
        modules = unwrapped(self.base).modules()
        if self.training and any(getattr(m, "gradient_checkpointing", False) for m in modules):
            raise ValueError(
                "gradient checkpointing is on, and with it the base keeps no cache in training; "
                "call base.gradient_checkpointing_disable(), or use executor='recompute'"
            )
        return new_cache(self.base, attention_mask)

    # -- forward and loss

    def forward(
        self,
        batch: LatentBatch,
        *,
        executor: Literal["sequential", "recompute", "jacobi"] = "sequential",
        iterations: int | None = None,
        logits: Literal["labels", "all"] | Tensor = "labels",
        edit: Edit | None = None,
        layers: bool = False,
        per_pass: PerPass | None = None,
    ) -> CoconutOutput:
        """Run a batch (see `LatentBatch`).

        Args:
            executor: see the methods of these names; the first two are exact.
            iterations: of jacobi.
            logits: which columns the head reads: those with a label, all, or a mask (B, S) bool to
                which the labels are added. The loss is the same.
            edit: changes thoughts before they are fed in (noise, ablation).
            layers: keep the hidden states of all layers.
            per_pass: (start, stop) -> more arguments for the base's forward of these columns.

        Raises:
            ValueError: a batch that does not fit the model, or an unknown executor.
        """
        check_batch(self, batch)
        labelled = batch["labels"] != IGNORE
        wanted = None if isinstance(logits, str) and logits == "all" else labelled
        if isinstance(logits, Tensor):
            wanted = labelled | logits
        wanted = self.read_columns(wanted, batch["latent"])
        changes: list[Tensor] = []

        def execute(
            batch: LatentBatch, wanted: Tensor | None, edit: Edit | None
        ) -> Iterator[PassOutput]:
            options = {"wanted": wanted, "edit": edit, "layers": layers}
            options["per_pass"] = per_pass or passes_of(self, batch)
            if executor == "jacobi":
                return self.jacobi(batch, iterations=iterations, changes=changes, **options)
            if executor == "recompute" or (torch.is_grad_enabled() and not self.manners.plain):
                # a recurrent state is written in place: no gradient through it
                return self.recompute(batch, **options)
            return self.sequential(batch, **options)

        if executor not in ("sequential", "recompute", "jacobi"):
            raise ValueError(
                f"there is no executor {executor!r}; choose sequential, recompute or jacobi"
            )
        real, latent = batch["attention_mask"].bool(), batch["latent"]
        if self.manners.together or bool(real.all()):
            done = tuple(execute(batch, wanted, edit))
            starts, thoughts = 1, len(_thought_columns(latent))
        else:
            wanted = None if wanted is None else wanted & real
            done = (rows_alone(batch, wanted, edit, execute),)
            starts, thoughts = len(latent), int(latent.sum())
        num_passes = starts + (len(changes) if executor == "jacobi" else thoughts)
        sums = torch.stack([self._score(batch, part, wanted) for part in done]).sum(0)
        row_loss, row_right, row_count = sums.unbind()
        return CoconutOutput(
            batch,
            done,
            row_loss,
            row_right.detach(),
            row_count.detach(),
            num_passes,
            torch.stack(changes) if changes else None,
            wanted,
        )

    @staticmethod
    def _score(batch: LatentBatch, part: PassOutput, wanted: Tensor | None) -> Tensor:
        """(3, B) summed cross-entropy, correct predictions and number of labels of a part."""
        labels = batch["labels"][:, part.start : part.stop]
        read = labels == labels if wanted is None else wanted[:, part.start : part.stop]
        rows, labels = read.nonzero()[:, 0], labels[read]
        logits = widened(part.logits.reshape(-1, part.logits.shape[-1]))
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        right = logits.detach().argmax(-1) == labels
        values = torch.stack([losses, right.to(losses), (labels != IGNORE).to(losses)])
        return values.new_zeros(3, len(read)).index_add(1, rows, values)

    def loss(
        self,
        batch: LatentBatch,
        state: dict[str, Tensor] | None = None,
        draws: Draws | None = None,
    ) -> Loss:
        """Cross-entropy summed over the labels of a batch, for the training loop.

        The loop divides by the sum of `batch["weight"]`. With extra losses a row is the unit, see
        `losses`. Nothing is drawn and nothing carried.
        """
        settings = self.settings
        check_spans(self, batch)
        output = self.forward(batch, layers=settings.distill > 0)
        count = output.row_count.sum()
        total, metrics = (
            output.total,
            {
                "token_loss": (output.total.detach(), count),
                "token_accuracy": (output.row_right.sum(), count),
            },
        )
        held, told = superposed_loss(self, batch, output)
        metrics |= told
        if settings.distill or settings.step_decoder:
            total, more = extra_losses(self, batch, output, held)
            metrics |= more
        elif held is not None:
            total = total + settings.superpose_weight * held.sum()
        if settings.alarms:
            metrics |= alarm_metrics(self, output)
        return Loss(total=total, metrics=metrics)

    # -- use

    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        """Continue prompts, as models of transformers do.

        Args:
            input_ids: (B, S) int64; placeholders in them are thoughts. attention_mask: (B, S), 1
                where a token is, padded on either side.
            options: of transformers' generate (fields of its configuration, streamer, processors,
                criteria: each acts or is refused, see `inward.common.generation`), and of
                `inward.methods.coconut.generate.generate`, which also tells what was thought.
        Returns:
            (B, L) int64: the prompts and the words said, padded on the right; with
            return_dict_in_generate transformers' output, `sequences` and what was asked for.

        Raises:
            ValueError: bad prompts or options, before any work.
        """
        from inward.methods.coconut.generate import continued

        return continued(self, input_ids, attention_mask, **options)

    # -- files

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write config.json, base/ (which AutoModelForCausalLM can read by itself), tokenizer/ and
        the stabilisers' weights.

        A PEFT base is saved as its adapter with the name of its base, as PEFT does; merge it first
        for a folder that stands alone. config.json comes last: without it there is no model.
        """
        save(self, folder, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        base: nn.Module | str | Path | None = None,
        trainable: bool = False,
        **kwargs: Any,
    ) -> Coconut:
        """Load what `save_pretrained` wrote.

        Args:
            base: use this model, or the one in this folder, instead of the saved one (for an
                adapter: the model below it).
            trainable: an adapter can be trained on; without it, it is frozen.
            kwargs: for the base's from_pretrained, such as dtype or attn_implementation.

        Raises:
            FileNotFoundError: no such model.
            ValueError: another kind of model, or weights that do not fit.
        """
        with reading(folder):
            return read(cls, Path(folder), base, {"trainable": trainable, **kwargs})


def _logits_of(logits: Tensor, wanted: Tensor | None, column: int) -> Tensor:
    """(B, V) of a column of a pass; 0 for rows of which it was not wanted."""
    if wanted is None:
        return logits[:, column]
    rows, columns = wanted.nonzero(as_tuple=True)
    at = columns == column
    found = logits.new_zeros(wanted.shape[0], logits.shape[-1])
    return found.index_copy(0, rows[at], logits[at])


def _thought_columns(latent: Tensor) -> list[int]:
    """Columns where at least one row has a thought; the only wait for the device in a forward."""
    return latent.any(0).nonzero()[:, 0].tolist()
