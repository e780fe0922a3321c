"""The door to TiDAR, and to plain decoding by the same loop. Nothing heavy is imported here."""

from __future__ import annotations

from typing import Any

from inward.common.thinking import Acts, Lanes, Method, Option


def _drafts(_model: Any, _asked: Any, own: Any) -> bool:
    """Whether there are guesses or masks."""
    plain = own.get("scheme", "plain") == "plain" and own.get("beta", 1.0) == 1.0
    return not plain or own["drafter"] is not None


def _of(scheme: str) -> Acts:
    return Acts(f"under scheme={scheme!r}", lambda _model, _asked, own: own["scheme"] == scheme)


_DRAFT = Acts("where something is drafted: by a drafter, or a scheme beyond plain", _drafts)
_COSTS = Acts(
    "under scheme='auto' without a chooser, which has its own",
    lambda _model, _asked, own: own["scheme"] == "auto" and own["chooser"] is None,
)
_ANY_MODEL = {
    "K": Option(None, "tokens of a draft; None: the block size of the model, or 8", int, _DRAFT),
    "drafter": Option(None, "(tokens, number) -> guesses, judged instead of the model's own"),
    "stopping_criteria": Option((), "transformers' criteria that end a text"),
    "packed": Option(None, "pack weights for the CPU; None: where it pays; False: never"),
    "options": Option({}, "further arguments of the model's forward, by name"),
}
_DRAFTING = {
    "scheme": Option("one_pass", "plain, two_pass, one_pass, partial, diffusion or auto"),
    "num_blocks": Option(
        2, "of partial: outcomes of a verification that get a mask block", None, _of("partial")
    ),
    "beta": Option(1.0, "trust in the autoregressive logits; below 1 other words are said"),
    "threshold": Option(
        0.9,
        "of diffusion: probability above which a token is kept unverified",
        None,
        _of("diffusion"),
    ),
    "costs": Option(
        None, "of auto: seconds of a forward by its rows; None: they are measured", None, _COSTS
    ),
    "chooser": Option(None, "of auto: one that other texts have taught", None, _of("auto")),
    "mask_id": Option(None, "the mask token of a model that is no TiDAR model"),
    "draft": Option(
        {}, 'of a looped model: depth of mask rows, {"num_steps": 2}', dict[str, int], _DRAFT
    ),
    "verify": Option(
        {}, 'of a looped model: depth of all other rows, {"num_steps": 16}', dict[str, int]
    ),
}


def _begin(model: Any, *, batch_size: int = 32) -> Lanes:
    """Work of TiDAR decoding; at most `batch_size` texts share a forward, more wait."""
    from inward.methods.tidar.work import begin

    return begin(METHOD, model, batch_size=batch_size)


def _begin_plain(model: Any, *, batch_size: int = 32) -> Lanes:
    """Work of plain decoding, see `_begin`."""
    from inward.methods.tidar.work import begin

    return begin(PLAIN, model, batch_size=batch_size)


METHOD = Method(
    name="tidar",
    begin=_begin,
    options=_DRAFTING | _ANY_MODEL,
    traces=("canvas", "drafts"),
    remembers=True,
    why_no_effort="verified drafts change no word: they make an answer faster, never better",
    steps="forwards",
    silent={},
)

PLAIN = Method(
    name="plain",
    begin=_begin_plain,
    options=_ANY_MODEL,
    traces=("canvas", "drafts"),
    remembers=True,
    why_no_effort="a plain model says each token after one forward: there is nothing to turn",
    steps="forwards",
    silent={},
)
