"""Coconut's door: what a request may ask of it. Nothing heavy is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inward.common.thinking import Acts, Method, Option

if TYPE_CHECKING:
    from inward.methods.coconut.work import CoconutLanes


def begin(model: Any, *, batch_size: int = 32) -> CoconutLanes:
    """Work on a `Coconut`; see `inward.common.thinking.Work`.

    Args:
        batch_size: rows at a time (a request has one for each vote); further ones wait.
    """
    from inward.methods.coconut.work import CoconutLanes

    return CoconutLanes(model, METHOD, batch_size=batch_size)


def _prepare(model: Any, tokens: Any, ask: Any, own: Any) -> tuple[Any, dict[str, Any]]:
    from inward.methods.coconut.asking import prepare

    return prepare(model, tokens, ask, own)


def _switches(_model: Any, _asked: Any, own: Any) -> bool:
    """Whether somebody may switch to thoughts."""
    speaks = own["switch"] == "speak" or type(own["switch"]).__name__ == "Speaking"
    return own["thoughts"] is not None or not speaks


def _thinks(model: Any, asked: Any, own: Any) -> bool:
    """Whether there are thoughts, or may be."""
    return bool(getattr(asked.prompt, "blocks", ())) or _switches(model, asked, own)


def _opens(model: Any, asked: Any, own: Any) -> bool:
    """Whether a block begins, or has begun at the prompt's end."""
    last = getattr(asked.prompt, "segments", ((),))[-1]
    begun = (getattr(last, "ids", None) or (model.specials.bot,))[-1] == model.specials.bot
    return begun or _switches(model, asked, own)


_SWITCH = Acts("where somebody switches to thoughts (switch, thoughts)", _switches)
_THOUGHT = Acts("on thoughts; say when to think (switch, thoughts)", _thinks)
_BLOCK = Acts("around thoughts; say when to think (switch, thoughts)", _opens)
_VOTES = Acts("where tries vote (votes=2 or more)", lambda _model, _asked, own: own["votes"] != 1)

METHOD = Method(
    name="coconut",
    begin=begin,
    options={
        "switch": Option(
            "speak",
            "who decides when to think: a name with numbers (speak, boundary:threshold=0.5, "
            "entropy:dwell=64, budget:of=entropy,total=12), or a function of a SwitchView",
        ),
        "thoughts": Option(
            None,
            "numbers: thoughts of each block, a sentence between two blocks",
            tuple[int, ...],
        ),
        "boundaries": Option(True, "say <bot> and <eot> around thoughts", None, _BLOCK),
        "count_marks": Option(True, "<bot> and <eot> count towards max_new_tokens", None, _BLOCK),
        "thought": Option(
            "hidden", "hidden: the last hidden state; soft: the mean embedding", None, _SWITCH
        ),
        "noise": Option(
            0.0, "Gaussian noise on thoughts, share of their size; 0.1 with votes", None, _THOUGHT
        ),
        "edit": Option(
            None,
            "(thought (1, d), which think (1,), its number (1,)) -> thought to feed in",
            None,
            _THOUGHT,
        ),
        "max_new_thoughts": Option(
            256, "thoughts that may be added; then it must speak", None, _SWITCH
        ),
        "lens": Option(
            None, "likeliest tokens told of each thought; 5 if a trace holds a lens", None, _THOUGHT
        ),
        "votes": Option(1, "tries with noise on their thoughts; the commonest answer wins"),
        "ballot": Option(
            None, "from the tokens of a try to what is counted; None: all tokens", None, _VOTES
        ),
        "per_pass": Option(None, "further arguments of the base's forward, or (start, stop) -> "),
        "per_thought": Option(
            {}, 'of a looped base: depth of thoughts, {"num_steps": 8}', dict[str, int], _THOUGHT
        ),
        "per_word": Option(
            {}, 'of a looped base: depth of words, {"num_steps": 2}', dict[str, int]
        ),
        "packed": Option(None, "pack weights for a CPU: True, False, None: where it pays"),
    },
    unit=("votes", "votes"),
    steps="thoughts",
    budget=("max_new_thoughts", "thoughts"),
    silent={"switch": "speak"},
    traces=("lens", "state", "plane"),
    reads="text",
    prepare=_prepare,
)
