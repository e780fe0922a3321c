"""The search in silent thoughts on ProsQA: which nodes does a thought hold, and how much of each?

    tree = read_out(model, records, num=4)      force <eot> after 0 to 4 thoughts, ask for the node
    table = by_height(tree, hops=1)             are nodes near the leaves judged more sharply?
    share = superposition(model, records, num=4)

Sources. The forced read-out is the analysis of Coconut (arXiv 2412.06769, section 5, figures 5 to
7): after t thoughts <eot> is forced, and the *value* of a node is the probability that the next
spoken step begins with it, the product over its tokens. A model can be asked this after any number
of thoughts only if its training mixed stages. The paper defines a node's height as its shortest
distance to a leaf and draws the longest; both are here. The groups of nodes are those of Reasoning
by Superposition (arXiv 2505.12514), made disjoint: after t hops

    optimal      exactly t hops from the root, on a shortest path to the target
    frontier     exactly t hops from the root, but on none
    reachable    fewer hops from the root
    unreachable  every other node, those that only a longer search reaches included

Everything is asked in batches of rows that end where the question is asked; the thoughts of a
question are computed anew for each number of thoughts, which is slow and obvious.

Shape letters: N questions, T thoughts, V nodes of a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from inward.common import IGNORE
from inward.data.thoughts.columns import before_thoughts, pick, widened
from inward.data.thoughts.prosqa import ROOT, Graph, distances, graph_of
from inward.data.thoughts.records import Record
from inward.data.thoughts.segments import Latent, Sample, Specials, Text
from inward.data.thoughts.tokenizers import encode_question, encode_text
from inward.evals.stats import Interval, rank_correlation
from inward.studies.thoughts_ablate import mean

if TYPE_CHECKING:
    from inward.methods.coconut.model import Coconut

GROUPS = ("unreachable", "reachable", "frontier", "optimal")
Height = Literal["shortest", "longest"]


# --------------------------------------------------------------------------------------------------
# Graphs


def groups(graph: Graph, hops: int) -> dict[str, list[int]]:
    """The nodes of each of `GROUPS` after so many hops; see the top of the file."""
    depth = distances(graph.children, graph.root)
    left = _to_target(graph)
    best = depth[graph.target]
    found: dict[str, list[int]] = {name: [] for name in GROUPS}
    for node in range(graph.num_nodes):
        at = depth.get(node)
        if at is None or at > hops:
            found["unreachable"].append(node)
        elif at < hops:
            found["reachable"].append(node)
        else:
            on_path = left.get(node) == best - hops
            found["optimal" if on_path else "frontier"].append(node)
    return found


def _to_target(graph: Graph) -> dict[int, int]:
    """Hops from every node that can reach the target to it."""
    parents: list[list[int]] = [[] for _ in range(graph.num_nodes)]
    for parent, child in graph.edges:
        parents[child].append(parent)
    return distances(parents, graph.target)


def heights(graph: Graph, kind: Height = "shortest") -> np.ndarray:
    """(V,) int: hops from each node down to a leaf, the nearest or the farthest one."""
    if kind not in ("shortest", "longest"):
        raise ValueError(f"height is {kind!r}; choose 'shortest' or 'longest'")
    children, found = graph.children, {}
    choose = min if kind == "shortest" else max

    def height(node: int) -> int:
        if node not in found:
            found[node] = 1 + choose(map(height, children[node])) if children[node] else 0
        return found[node]

    return np.array([height(node) for node in range(graph.num_nodes)])


# --------------------------------------------------------------------------------------------------
# Forced read-out


@dataclass(frozen=True, eq=False)
class ReadOut:
    """One question's search tree as the model sees it.

    values: (T + 1, V) probability that the next spoken step begins with a node, after 0 to T
        thoughts; rows need not add up to 1, since the model may want to say something else.
    per_hop: thoughts that stand for a hop.
    """

    record: Record
    values: np.ndarray
    per_hop: int = 1

    @property
    def graph(self) -> Graph:
        """The question's graph."""
        return graph_of(self.record)

    @property
    def symbols(self) -> list[str]:
        """Name of each node."""
        return list(self.record.meta["idx_to_symbol"])

    @property
    def depths(self) -> np.ndarray:
        """(V,) hops from the root, -1 where it does not lead."""
        graph = self.graph
        depth = distances(graph.children, graph.root)
        return np.array([depth.get(node, -1) for node in range(graph.num_nodes)])

    def after(self, hops: int) -> np.ndarray:
        """(V,) values after the thoughts of so many hops.

        Raises:
            ValueError: the read-out does not go so far.
        """
        most = (len(self.values) - 1) // self.per_hop
        if not 0 <= hops <= most:
            raise ValueError(f"hops is {hops}; this read-out goes from 0 to {most}")
        return self.values[hops * self.per_hop]


@torch.no_grad()
def read_out(
    model: Coconut, records: Sequence[Record], *, num: int, per_hop: int = 1, batch: int = 64
) -> list[ReadOut]:
    """Values of all nodes of all questions after 0 to `num` thoughts.

    The question is written, <bot>, the thoughts, <eot>, and in the text rendering the word "Every"
    that the paper's steps begin with (after 0 thoughts nothing: the first step begins with a name).

    Args:
        records: as they are put to the model (`ProsQATask.ask`).
        num: largest number of thoughts.
        per_hop: thoughts that stand for a hop, c of the curriculum.
        batch: rows at a time.

    Raises:
        ValueError: no records, numbers below 1, records without a graph, a model without a
            tokenizer, or names that the tokenizer does not know.
    """
    _check(model, records, num, per_hop, batch)
    found = []
    for record in records:
        names = [_name(model, record, i) for i in range(len(record.meta["idx_to_symbol"]))]
        prompts = [_forced(model, record, t) for t in range(num + 1)]
        found.append(ReadOut(record, _values(model, prompts, names, batch), per_hop))
    return found


@torch.no_grad()
def along(
    model: Coconut,
    record: Record,
    sample: Sample,
    *,
    asked: Literal["step", "answer"] = "step",
    batch: int = 64,
) -> np.ndarray:
    """Values (T + 1, V) of all nodes along what a model has thought and said: before its first
    thought, and after each of the T thoughts of `sample` (`Answer.details["sample"]`).

    asked: for what is forced after <eot>: the next spoken step, or the answer at once.

    Raises:
        ValueError: as for `read_out`; or there is no thought.
    """
    symbolic = _is_symbolic(record)
    root = record.meta["idx_to_symbol"][graph_of(record).root]
    words = {"step": "Every", "answer": f"### {root} is a"}
    if symbolic:
        words = {"step": "", "answer": "###"}
    if asked not in words:
        raise ValueError(f"asked is {asked!r}; a thought can be asked for the next step or answer")
    lead = encode_text(model.tokenizer, words[asked]) if words[asked] else ()
    prompts = _prefixes(model, sample, lead)
    _check(model, [record], len(prompts) - 1, 1, batch)
    names = [_name(model, record, i) for i in range(len(record.meta["idx_to_symbol"]))]
    return _values(model, prompts, names, batch)


def _prefixes(model: Coconut, sample: Sample, lead: tuple[int, ...]) -> list[Sample]:
    """What asks for a node before the first thought and after each: <eot>, and `lead`."""
    specials, found = model.specials, []
    for i, segment in enumerate(sample.segments):
        before = tuple(
            part if isinstance(part, Latent) else Text(part.ids, False)
            for part in sample.segments[:i]
        )
        if isinstance(segment, Latent):
            if not found:
                last = before[-1].ids if isinstance(before[-1], Text) else ()
                found.append(Sample((*before[:-1], Text((*last, specials.eot, *lead), False))))
            closed = Text((specials.eot, *lead), False)
            found += [Sample((*before, Latent(n), closed)) for n in range(1, segment.num + 1)]
    return found


def _check(model: Coconut, records: Sequence[Record], num: int, per_hop: int, batch: int) -> None:
    if not records or min(num, per_hop, batch) < 1:
        raise ValueError(
            f"{len(records)} records, {num} thoughts, {per_hop} a hop, {batch} rows at a time; "
            "each must be 1 or more"
        )
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer to name nodes with; give it one")
    for record in records:
        graph_of(record)


def _is_symbolic(record: Record) -> bool:
    return ROOT in record.question


def _name(model: Coconut, record: Record, node: int) -> tuple[int, ...]:
    """Tokens of a node's name as it stands within a step."""
    symbol = record.meta["idx_to_symbol"][node]
    return encode_text(model.tokenizer, symbol if _is_symbolic(record) else " " + symbol)


def _forced(model: Coconut, record: Record, num: int) -> Sample:
    """The prompt that asks for the next node after `num` thoughts."""
    specials = model.specials
    question = encode_question(record.question, model.tokenizer)
    lead = "" if _is_symbolic(record) or num == 0 else "Every"
    words = encode_text(model.tokenizer, lead) if lead else ()
    return forced(question, num, specials, words)


def forced(
    question: tuple[int, ...], num: int, specials: Specials, lead: tuple[int, ...] = ()
) -> Sample:
    """A question, `num` thoughts between boundary tokens, and the first words of a step."""
    opened, closed = Text((*question, specials.bot), False), Text((specials.eot, *lead), False)
    if num == 0:
        return Sample((Text(opened.ids + closed.ids, False),))
    return Sample((opened, Latent(num), closed))


def _values(
    model: Coconut, prompts: Sequence[Sample], names: Sequence[tuple[int, ...]], batch: int
) -> np.ndarray:
    """(T + 1, V) probability of each name after each prompt.

    One row a prompt where every name is one token, else one a name and prompt (`_spelled`).
    """
    if any(len(name) != 1 for name in names):
        return _spelled(model, prompts, names, batch)
    first = [name[0] for name in names]
    values = []
    for start in range(0, len(prompts), batch):
        own = model.collate(prompts[start : start + batch])
        mask = own["attention_mask"]
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        ends = torch.arange(mask.shape[1], device=mask.device) == last[:, None]
        output = model(own, logits=ends)
        logits = output.logits.new_zeros(len(mask), output.logits.shape[-1])
        for part in output.parts:
            rows, _ = ends[:, part.start : part.stop].nonzero(as_tuple=True)
            logits[rows] = part.logits
        values.append(widened(logits).softmax(-1)[:, first].cpu().numpy())
    return np.concatenate(values)


def _spelled(
    model: Coconut, prompts: Sequence[Sample], names: Sequence[tuple[int, ...]], batch: int
) -> np.ndarray:
    """The same with the product over tokens written out: each name is a row's supervised text."""
    rows = [Sample((*p.segments, Text(name, True))) for p in prompts for name in names]
    losses: list[Tensor] = []
    for start in range(0, len(rows), batch):
        losses.append(model(model.collate(rows[start : start + batch])).row_loss)
    return torch.cat(losses).neg().exp().reshape(len(prompts), len(names)).cpu().numpy()


# --------------------------------------------------------------------------------------------------
# What the values say


@dataclass(frozen=True)
class HeightRow:
    """Nodes of one height: mean value of those that lead to the target, and of the others."""

    height: int
    num_right: int
    num_wrong: int
    right: Interval | None
    wrong: Interval | None


@dataclass(frozen=True)
class Heights:
    """Height against value over the nodes `hops` from the root.

    correlation: Spearman's between a node's height and the error |value - truth|, truth 1 for nodes
        that lead to the target and 0 for others; positive if low nodes are judged better. None if
        there is nothing to compare.
    """

    hops: int
    kind: Height
    num: int
    rows: tuple[HeightRow, ...]
    correlation: float | None


def by_height(found: Sequence[ReadOut], *, hops: int, kind: Height = "shortest") -> Heights:
    """Figure 7 of the paper as a table: are nodes near the leaves judged more sharply?

    Raises:
        ValueError: no node is `hops` from a root, or the read-outs do not go so far.
    """
    facts: list[tuple[int, bool, float]] = []
    for tree in found:
        graph, values, depths = tree.graph, tree.after(hops), tree.depths
        high, leads = heights(graph, kind), _to_target(graph)
        nodes = np.flatnonzero(depths == hops)
        facts += [(int(high[n]), int(n) in leads, float(values[n])) for n in nodes]
    if not facts:
        raise ValueError(f"no node of the {len(found)} graphs is {hops} hops from its root")
    rows = []
    for height in sorted({h for h, _, _ in facts}):
        right = [v for h, r, v in facts if h == height and r]
        wrong = [v for h, r, v in facts if h == height and not r]
        means = [mean(values) if values else None for values in (right, wrong)]
        rows.append(HeightRow(height, len(right), len(wrong), *means))
    high, truth, value = (np.array(column, dtype=float) for column in zip(*facts, strict=True))
    rho = rank_correlation(high, np.abs(value - truth))
    return Heights(hops, kind, len(facts), tuple(rows), rho)


def parallelism(found: Sequence[ReadOut], *, hops: int, most: int = 3) -> np.ndarray:
    """(N, most) summed value of the likeliest 1, 2, ... nodes of each question after so many hops.

    Figure 6 of the paper draws each column sorted: a wide gap between the first and the others
    means that several nodes are kept in sight.
    """
    if most < 1 or not found:
        raise ValueError(f"{len(found)} read-outs and most {most}; each must be 1 or more")
    kept = np.zeros((len(found), most))
    for row, tree in zip(kept, found, strict=True):
        best = np.sort(tree.after(hops))[::-1][:most]
        row[: len(best)] = best
        row[len(best) :] = 0.0
    return kept.cumsum(1)


# --------------------------------------------------------------------------------------------------
# Superposition


@dataclass(frozen=True)
class Superposition:
    """What each thought holds of each of `GROUPS`, means over questions.

    inner: mean inner product of the thought with the embeddings of a group's nodes.
    lens: probability of a group's nodes together under the head.
    nodes: mean number of nodes of the group. A group that is empty for all questions is absent.
    """

    num: int
    inner: tuple[dict[str, Interval], ...]
    lens: tuple[dict[str, Interval], ...]
    nodes: tuple[dict[str, float], ...]


@torch.no_grad()
def superposition(
    model: Coconut, records: Sequence[Record], *, num: int, per_hop: int = 1, batch: int = 64
) -> Superposition:
    """Inner products and lens of thoughts 1 to `num` with the nodes of each group.

    Thought t stands for hop ceil(t / per_hop): the first one is to hold what is one hop away.

    Args:
        records, num, per_hop, batch: as for `read_out`.

    Raises:
        ValueError: as for `read_out`; or a node's name has several tokens.
    """
    _check(model, records, num, per_hop, batch)
    facts: dict[tuple[int, str], list[tuple[float, float, int]]] = {}
    table = model.embedding
    for start in range(0, len(records), batch):
        own = records[start : start + batch]
        thoughts, chances = _thoughts(model, [_forced(model, r, num) for r in own])
        for r, record in enumerate(own):
            ids = torch.tensor(_single(model, record), device=thoughts.device)
            inner = (thoughts[r].float() @ table(ids).float().T).cpu().numpy()
            lens = chances[r][:, ids].cpu().numpy()
            for t in range(num):
                for name, nodes in groups(graph_of(record), t // per_hop + 1).items():
                    if nodes:
                        row = (float(inner[t, nodes].mean()), float(lens[t, nodes].sum()))
                        facts.setdefault((t, name), []).append((*row, len(nodes)))
    columns: list[list[dict[str, Interval]]] = [[], []]
    counts = []
    for t in range(num):
        there = {name: facts[t, name] for name in GROUPS if (t, name) in facts}
        for i, column in enumerate(columns):
            column.append({name: mean([f[i] for f in own]) for name, own in there.items()})
        counts.append({name: sum(f[2] for f in own) / len(records) for name, own in there.items()})
    return Superposition(len(records), tuple(columns[0]), tuple(columns[1]), tuple(counts))


def _single(model: Coconut, record: Record) -> list[int]:
    names = [_name(model, record, i) for i in range(len(record.meta["idx_to_symbol"]))]
    long = [i for i, name in enumerate(names) if len(name) != 1]
    if long:
        raise ValueError(
            f"node {record.meta['idx_to_symbol'][long[0]]!r} has {len(names[long[0]])} tokens; "
            "superposition needs one a node, read_out does not"
        )
    return [name[0] for name in names]


def _thoughts(model: Coconut, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(B, K, d) thoughts and (B, K, V) the head's probabilities of what becomes them."""
    batch = model.collate(samples)
    batch = {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}
    lens = before_thoughts(batch["latent"])
    output = model(batch, logits="all")
    logits, _ = pick(widened(output.logits), lens)
    thoughts, _ = output.thoughts()
    return thoughts, logits.softmax(-1)
