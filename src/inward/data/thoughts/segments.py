"""A sample that thinks: a list of segments, spoken text or silent thoughts, in any order.

    Sample((Text(question, False), Latent(6), Text(answer, True)))            Coconut
    Sample((Text(q, False), Latent(2), Text(step, True), Latent(2), ...))     interleaved

Coconut (arXiv 2412.06769) is the special case of one latent segment after the question; its code
finds that segment by searching for placeholder ids and cannot hold two. Here the structure is the
data, and no id has to be searched for. Boundary tokens `<bot>` and `<eot>` are ordinary ids inside
text: supervised where the model shall learn to switch by itself (the published runs never do).
The placeholder id of a thought never appears in text; `flat` and `parse` translate between
segments and the published form, where it does.

No torch here: curricula and readers build samples, `inward.methods.coconut.model.collate` makes
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise


@dataclass(frozen=True)
class Text:
    """Token ids that are spoken: given (supervised False) or to be learned (True)."""

    ids: tuple[int, ...]
    supervised: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(int(i) for i in self.ids))
        if self.ids and min(self.ids) < 0:
            raise ValueError(f"a text holds the token id {min(self.ids)}; ids are 0 or more")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Latent:
    """`num` thoughts in a row: each position's input is the hidden state before it.

    spans   what each is trained to hold (`inward.data.thoughts.superposed`), all of one width;
            empty: nothing that is written down
    """

    num: int
    spans: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        widths = {len(span) for span in self.spans}
        if self.spans and (len(self.spans) != self.num or len(widths) != 1):
            raise ValueError(
                f"a latent segment of {self.num} thoughts has {len(self.spans)} spans of "
                f"{sorted(widths)} tokens; give each thought one, all of the same width"
            )
        if not isinstance(self.num, int) or isinstance(self.num, bool) or self.num < 1:
            raise ValueError(
                f"a latent segment has {self.num} thoughts; give 1 or more, or leave it out"
            )

    def __len__(self) -> int:
        return self.num


Segment = Text | Latent


@dataclass(frozen=True)
class Specials:
    """Ids of the three tokens that Coconut adds to a tokenizer."""

    bot: int
    eot: int
    latent: int

    def __post_init__(self) -> None:
        ids = (self.bot, self.eot, self.latent)
        if len(set(ids)) < 3 or min(ids) < 0:
            raise ValueError(
                f"bot, eot and latent are {ids}; they must be three different ids, 0 or more"
            )


@dataclass(frozen=True)
class Sample:
    """Segments in order. Empty texts are dropped; at least one text must remain.

    Raises ValueError if a thought has no position before it to come from (a latent segment first)
    or if two latent segments touch (they would be one: write Latent(a + b), or put the boundary
    tokens between them).
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        kept = tuple(s for s in self.segments if isinstance(s, Latent) or s.ids)
        object.__setattr__(self, "segments", kept)
        if not kept:
            raise ValueError("a sample has no tokens; give at least one text segment")
        if isinstance(kept[0], Latent):
            raise ValueError(
                "a sample begins with thoughts; the first thought is the hidden state of the "
                "position before it, so put at least one token first"
            )
        for i, (first, second) in enumerate(pairwise(kept)):
            if isinstance(first, Latent) and isinstance(second, Latent):
                raise ValueError(
                    f"segments {i} and {i + 1} are both latent ({first.num} and {second.num} "
                    f"thoughts); write one Latent({first.num + second.num})"
                )

    def __len__(self) -> int:
        """Positions: tokens and thoughts."""
        return sum(len(segment) for segment in self.segments)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Thoughts of each latent segment, in order."""
        return tuple(s.num for s in self.segments if isinstance(s, Latent))

    @property
    def num_thoughts(self) -> int:
        """Thoughts of all latent segments."""
        return sum(self.blocks)

    @property
    def num_supervised(self) -> int:
        """Tokens that the loss looks at; the very first position has nothing to predict it."""
        counted = sum(len(s) for s in self.segments if isinstance(s, Text) and s.supervised)
        first = self.segments[0]
        return counted - (isinstance(first, Text) and first.supervised)

    def check(
        self, specials: Specials, *, max_positions: int | None = None, may_end_open: bool = False
    ) -> Sample:
        """Return the sample if its tokens agree with its segments.

        may_end_open   a prompt may stop in the middle of thinking: its last `<bot>` may stay open
        Raises ValueError: a text holds the placeholder id; boundary tokens are unbalanced (a
        `<bot>` or `<eot>` twice in a row, thoughts outside them although the sample has some, an
        open `<bot>` at the end); or the sample has more than `max_positions` positions.
        """
        if max_positions is not None and len(self) > max_positions:
            raise ValueError(
                f"a sample has {len(self)} positions, {self.num_thoughts} of them thoughts, but "
                f"the context holds {max_positions}; shorten the text or use fewer thoughts"
            )
        uses = any(
            isinstance(s, Text) and (specials.bot in s.ids or specials.eot in s.ids)
            for s in self.segments
        )
        inside, place = False, 0
        marks = {specials.bot, specials.eot, specials.latent}
        for segment in self.segments:
            if isinstance(segment, Latent):
                if uses and not inside:
                    raise ValueError(
                        f"thoughts at position {place} are not preceded by <bot> ({specials.bot}), "
                        "although the sample has boundary tokens; mark all blocks or none"
                    )
                place += len(segment)
                continue
            if not marks.intersection(segment.ids):
                place += len(segment)
                continue
            for token in segment.ids:
                inside = _after(token, inside, place, specials)
                place += 1
        if inside and not may_end_open:
            raise ValueError(
                f"unbalanced boundary tokens: <bot> ({specials.bot}) is open at the end; "
                f"close it with <eot> ({specials.eot})"
            )
        return self


def _after(token: int, inside: bool, place: int, specials: Specials) -> bool:
    """Whether the position after `token` lies between <bot> and <eot>."""
    if token == specials.latent:
        raise ValueError(
            f"the token at position {place} is the placeholder of a thought ({token}); "
            "use a Latent segment instead"
        )
    if token in (specials.bot, specials.eot):
        if inside == (token == specials.bot):
            name, state = ("<bot>", "open") if token == specials.bot else ("<eot>", "not open")
            raise ValueError(
                f"unbalanced boundary tokens: {name} ({token}) at position {place}, "
                f"where thinking is {'already ' if inside else ''}{state}"
            )
        return token == specials.bot
    return inside


def flat(sample: Sample, *, latent: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The published form: ids with the placeholder `latent`, and which of them are supervised."""
    ids: list[int] = []
    supervised: list[bool] = []
    for segment in sample.segments:
        ids += segment.ids if isinstance(segment, Text) else [latent] * segment.num
        supervised += [isinstance(segment, Text) and segment.supervised] * len(segment)
    return tuple(ids), tuple(supervised)


def parse(
    ids: Sequence[int],
    supervised: Sequence[bool] | bool = False,
    *,
    specials: Specials,
    may_end_open: bool = False,
) -> Sample:
    """Inverse of `flat`: segments of a row of ids, checked against its boundary tokens.

    supervised   one flag a position, or one for all text; flags of thoughts are ignored.
    may_end_open a prompt may stop in the middle of thinking
    Raises ValueError for unbalanced boundaries, a thought first, or a flag count that differs.
    """
    flags = [supervised] * len(ids) if isinstance(supervised, bool) else list(supervised)
    if len(flags) != len(ids):
        raise ValueError(f"{len(ids)} ids but {len(flags)} supervised flags; give one flag an id")
    kinds = [None if i == specials.latent else flag for i, flag in zip(ids, flags, strict=True)]
    segments: list[Segment] = []
    place = 0
    for kind, run in groupby(kinds):
        length = len(list(run))
        own = tuple(ids[place : place + length])
        segments.append(Latent(length) if kind is None else Text(own, kind))
        place += length
    return Sample(tuple(segments)).check(specials, may_end_open=may_end_open)
