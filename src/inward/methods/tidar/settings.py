"""Settings of TiDAR and of its draft-only adapter: frozen, checked when made, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inward.common.checks import need


@dataclass(frozen=True)
class TiDARSettings:
    """What is trained (arXiv 2511.08923, sections 3.1 and 4)."""

    block_size: int = 8
    """K: tokens drafted at once; the paper trains 4, 8 and 16. Decoding may use a smaller one."""
    shifted: bool = False
    """True: a mask row predicts the token after its place, as clean rows do. The first token of a
    draft is then predicted by the clean row before the block, whose word it is anyway, and a draft
    of K tokens takes K - 1 masks. The paper (False) has K, of which the first repeats what the
    verifier says for nothing, unless beta mixes the two."""
    alpha: float = 1.0
    """Weight of the autoregressive loss, any positive number (the paper's figure 6 tries 1.2)."""
    masking: Literal["full", "random"] = "full"
    """full: the diffusion half is all masks (TiDAR; better drafts, table 5). random: each sample
    masks a share t ~ U(min_mask, 1) and weighs its loss by 1 / t (block diffusion; needed if the
    model shall also denoise in several steps)."""
    min_mask: float = 1e-3
    grid: Literal["random", "fixed"] = "random"
    """random: the first block of a text has a random length, so that training meets every prefix
    length, as decoding does. fixed: blocks start at multiples of K."""
    align_answers: bool = True
    """Where the batch says which tokens are answers, start a block at each answer: one that
    straddles its start would hide the end of the question."""
    decay: float = 1.0
    """Weight of a mask row's loss, decay ** j for place j = 0.. K-1 of its block, over the mean of
    these: below 1 the first drafts count more, because a draft is worth something only if all those
    before it were right. The paper weighs all alike."""
    distill: float = 0.0
    """Draft-only adapters: this share of the loss is KL(p || q), p what the model itself says of
    the place, from the clean rows of the same step, q the draft; the rest is cross-entropy with
    the token that stands there. The paper, which trains both halves, has none."""
    dense_masks: Literal["one", "batch"] = "one"
    """Samples with masks of their own (packed or aligned ones), without FlexAttention. one: they
    run one after the other and recompute their forward in backward, so that only one (2S)^2 mask
    exists at a time. batch: all at once, faster, with a mask for each."""

    max_logits: int = 2**25
    """Logits that the loss makes at once, 128 MB in float32. Where all rows would be more, the
    vocabulary head runs piece by piece over the rows that count, again in backward: a row of the
    published recipes (8,192 x 151,936) would else be 5 GB. 0: no limit."""

    steps: int = 0
    """Recurrences of a looped model (Huginn) for clean rows, in training and, where a request does
    not say otherwise, in decoding; 0: as the model says."""
    draft_steps: int = 0
    """The same for mask rows, which may take fewer: nothing clean reads them. 0: as `steps`."""

    def __post_init__(self) -> None:
        need(self.max_logits >= 0, "max_logits", self.max_logits, "0 (no limit) or more")
        whole = isinstance(self.block_size, int) and not isinstance(self.block_size, bool)
        need(whole, "block_size", self.block_size, "a whole number of tokens")
        least = 1 + self.shifted
        need(self.block_size >= least, "block_size", self.block_size, f"{least} or more")
        if self.shifted and self.masking != "full":
            raise ValueError(
                f"shifted needs masking='full', not {self.masking!r}: a row that shows a token has "
                "no token of its own to predict"
            )
        need(0 < self.alpha < float("inf"), "alpha", self.alpha, "positive and finite")
        for name in ("steps", "draft_steps"):
            need(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        need(0 < self.min_mask <= 1, "min_mask", self.min_mask, "in (0, 1]")
        need(0 < self.decay <= 1, "decay", self.decay, "in (0, 1]")
        need(0 <= self.distill <= 1, "distill", self.distill, "in [0, 1]")
        for name, choices in (
            ("masking", ("full", "random")),
            ("grid", ("random", "fixed")),
            ("dense_masks", ("one", "batch")),
        ):
            need(getattr(self, name) in choices, name, getattr(self, name), f"one of {choices}")

    @property
    def lead(self) -> int:
        """Masks of a block before the first that guesses: the word of this one is the verifier's
        own. 0 if shifted."""
        return 0 if self.shifted else 1

    @property
    def num_masks(self) -> int:
        """Mask rows of a block that drafts K tokens."""
        return self.block_size - 1 + self.lead


@dataclass(frozen=True)
class AdapterSettings:
    """Low-rank weights W + (alpha / rank) B A that act on mask rows only."""

    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = ()
    """Last parts of the names of the layers to adapt ("q_proj", "c_attn", ...); empty: every linear
    layer but the vocabulary head."""
    seed: int = 0

    def __post_init__(self) -> None:
        need(self.rank >= 1, "rank", self.rank, "1 or more")
        need(0 < self.alpha < float("inf"), "alpha", self.alpha, "positive and finite")
        need(self.seed >= 0, "seed", self.seed, "0 or more")
