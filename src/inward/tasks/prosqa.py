"""The ProsQA benchmark: how to ask, how to read an answer, and how to know that it was searched.

Coconut scores the text after the last `#` by equality (arXiv 2412.06769, released code). On the
released files a rule that never looks at the asked entity gets 91 % of that score, so the score
that counts here is *paired*: the question and its swap (the other root on the same graph, the
opposite answer) must both be right. Blind rules say the same for both and get 0.

Beside it: the share of spoken steps that are edges of the graph, and the paper's classes of output
(section 5: shortest path, longer path, hallucination, wrong target, label only), extended to chains
with silent steps between spoken ones: a gap counts as the fewest hops that can close it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from inward.data.thoughts.prosqa import (
    BAR,
    QUERY,
    ROOT,
    Graph,
    Rendering,
    blind_depth,
    distances,
    graph_of,
    joined,
    rendered,
    swapped,
)
from inward.data.thoughts.records import Record
from inward.tasks import paired

OUTCOMES = (
    "correct_path",
    "longer_path",
    "hallucination",
    "wrong_target",
    "correct_label",
    "incorrect_label",
)
_SENTENCE = re.compile(r"(?:Every )?(\w+) is a (\w+)\.?")
_SYMBOLS = re.compile(r"(\S+) (\S+)")


def final_answer(text: str) -> str:
    """What stands after the last `#`, without commas (the released code's rule)."""
    return text.rpartition("#")[2].replace(",", "").strip()


def read_question(text: str) -> Record:
    """A question as the record it was made from, as far as the question tells it: without steps,
    and with the answer that the graph gives.

    Raises:
        ValueError: it is no ProsQA question in either rendering, or its graph leads from the asked
            node to none of the options.
    """
    if ROOT in text:
        head, _, asked = text.partition(QUERY)
        options, _, root = asked.partition(ROOT)
        parts = head.split(BAR) if BAR in head else head.split()
        links = [_SYMBOLS.fullmatch(part.replace("_", " ").strip()) for part in parts]
        names, last = options.split(), root.split()
    else:
        head, _, asked = text.rpartition("Is ")
        found = re.fullmatch(r"(\w+) an? (\w+) or (?:an? )?(\w+)\?", asked.strip())
        links = [_SENTENCE.match(part) for part in re.findall(r"[^.]+\.", head.replace(". ", "."))]
        names, last = (list(found.groups()[1:]), [found.group(1)]) if found else ([], [])
    if len(names) != 2 or len(last) != 1 or not links or None in links:
        raise ValueError(f"{text[:60]!r} is no ProsQA question: no edges, two options and a root")
    pairs = [link.groups() for link in links if link]
    symbols = list(
        dict.fromkeys(name for pair in [*pairs, tuple(last), tuple(names)] for name in pair)
    )
    place = {name: i for i, name in enumerate(symbols)}
    edges = [[place[a], place[b]] for a, b in pairs]
    return _read(text, symbols, edges, place[last[0]], [place[name] for name in names])


def _read(
    text: str, symbols: list[str], edges: list[list[int]], root: int, options: list[int]
) -> Record:
    children: list[list[int]] = [[] for _ in symbols]
    for a, b in edges:
        children[a].append(b)
    reached = [node in distances(children, root) for node in options]
    if not any(reached):
        raise ValueError(
            f"nothing leads from {symbols[root]} to {symbols[options[0]]} or the other"
        )
    target, other = options if reached[0] else options[::-1]
    sources = {a for a, _ in edges} - {b for _, b in edges} - {root}
    roots = [a for a in sorted(sources) if other in distances(children, a)]
    meta = {
        "idx_to_symbol": symbols,
        "edges": edges,
        "root": root,
        "target": target,
        "neg_target": other,
        "other_root": roots[0] if roots else root,
    }
    said = symbols[target] if ROOT in text else f"{symbols[root]} is a {symbols[target]}."
    return Record(text, (), said, meta)


def spoken_steps(text: str) -> list[str]:
    """The lines before the answer mark."""
    spoken = text.partition("#")[0] if "#" in text else text
    return [line for part in spoken.split("\n") if (line := part.strip())]


@dataclass(frozen=True)
class Score:
    """One output: is the answer right, what kind of reasoning, how many spoken steps are edges."""

    right: bool
    outcome: str
    num_spoken: int
    num_edges: int


@dataclass(frozen=True)
class ProsQATask:
    """ProsQA in the paper's sentences ("text") or as edge pairs and numbers ("symbolic").

    rename       new names or numbers at each rewriting (see `inward.data.thoughts.prosqa.rendered`)
    num_symbols  numbers of the symbolic rendering; the released graphs need 28
    joined       an edge of the symbolic question is one word (see
    `inward.data.thoughts.prosqa.joined`)
    """

    rendering: Rendering = "text"
    rename: bool = True
    num_symbols: int | None = 28
    joined: bool = False

    @property
    def name(self) -> str:
        """Name in tables and file names."""
        return "prosqa" if self.rendering == "text" else "prosqa-symbolic"

    def rewrite(self, record: Record, rng: np.random.Generator) -> Record:
        """The puzzle anew: order, names and path drawn. For `LatentSource`."""
        written = rendered(
            record,
            rng,
            rendering=self.rendering,
            rename=self.rename,
            num_symbols=self.num_symbols if self.rendering == "symbolic" else None,
        )
        return joined(written) if self.joined else written

    def ask(self, records: Sequence[Record], *, seed: int = 0) -> list[Record]:
        """Records as they are put to a model: untouched as text, drawn from `seed` as symbols."""
        if self.rendering == "text":
            return list(records)
        return [self.rewrite(r, np.random.default_rng([seed, i])) for i, r in enumerate(records)]

    def swap(self, records: Sequence[Record]) -> list[Record]:
        """The swapped question of each record that was asked."""
        return [swapped(record) for record in records]

    def score(self, record: Record, text: str) -> Score:
        """Judge what the model said after the question. Never raises for an odd output."""
        graph = graph_of(record)
        right = final_answer(text) == record.answer.replace(",", "").strip()
        spoken = spoken_steps(text)
        links = [self._link(record, line) for line in spoken]
        valid = [link for link in links if link in set(graph.edges)]
        outcome = _outcome(graph, links, right)
        return Score(right, outcome, len(spoken), len(valid))

    def _link(self, record: Record, line: str) -> tuple[int, int] | None:
        """The step as a pair of nodes; None if it is not one."""
        found = (_SENTENCE if self.rendering == "text" else _SYMBOLS).fullmatch(line)
        symbols = record.meta["idx_to_symbol"]
        if found is None or not {found[1], found[2]} <= set(symbols):
            return None
        return symbols.index(found[1]), symbols.index(found[2])


def _outcome(graph: Graph, links: Sequence[tuple[int, int] | None], right: bool) -> str:
    if not links:
        return "correct_label" if right else "incorrect_label"
    children, edges = graph.children, set(graph.edges)
    at, length = graph.root, 0
    for link in links:
        if link is None or link not in edges:
            return "hallucination"
        gap = distances(children, at).get(link[0])
        if gap is None:
            return "hallucination"
        at, length = link[1], length + gap + 1
    rest = distances(children, at).get(graph.target)
    if rest is None:
        return "wrong_target"
    shortest = distances(children, graph.root)[graph.target]
    return "correct_path" if length + rest == shortest else "longer_path"


@dataclass(frozen=True)
class Report:
    """Numbers of a set of answers; `metrics` is flat, for logs and tables.

    accuracy      of the questions
    paired        question and swap both right (with swapped outputs only)
    both_sides    mean accuracy over questions and swaps; 0.5 is what a blind rule can get
    valid_edges   share of spoken steps that are edges; 1.0 if nothing is spoken would be a lie, so
                  the entry is absent then
    spoken        steps spoken per answer
    outcome_*     shares of the paper's classes
    blind_depth   what the blind rule gets on the same questions
    """

    metrics: dict[str, float]
    scores: list[Score] = field(repr=False)
    swapped_scores: list[Score] = field(repr=False, default_factory=list)


def report(
    task: ProsQATask,
    records: Sequence[Record],
    texts: Sequence[str],
    swapped_texts: Sequence[str] | None = None,
) -> Report:
    """Score outputs, one a record, and those of the swapped questions if they were asked.

    Raises ValueError if the numbers of records and outputs differ, or are 0.
    """
    scores, other = paired.scores(task, records, texts, swapped_texts)
    return Report(_metrics(records, scores, other), scores, other)


def _metrics(
    records: Sequence[Record], scores: Sequence[Score], other: Sequence[Score]
) -> dict[str, float]:
    metrics = paired.accuracies(scores, other)
    spoken = sum(score.num_spoken for score in scores)
    if spoken:
        metrics["valid_edges"] = sum(score.num_edges for score in scores) / spoken
    metrics["spoken"] = spoken / len(scores)
    counts = Counter(score.outcome for score in scores)
    metrics |= {f"outcome_{name}": counts[name] / len(scores) for name in OUTCOMES}
    return metrics | blind(records)


def blind(records: Sequence[Record]) -> dict[str, float]:
    """What the blind depth rule gets on these questions: a control to print beside every result.

    It names the same option for a question and its swap, hence 0.5 over both sides, 0 paired.
    """
    return {
        "blind_depth": float(np.mean([blind_depth(record) for record in records])),
        "blind_depth_both_sides": 0.5,
        "blind_depth_paired": 0.0,
    }
