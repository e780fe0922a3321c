"""ProsQA puzzles: a generator that matches the released files, without their shortcut on demand.

A puzzle is an acyclic graph with two roots. "Is Tom a lempus or scrompus?": one option can be
reached from Tom, the other only from the second root. Source: Coconut (arXiv 2412.06769, A.2).

What is unusual:
- The procedure printed in the paper does not give the released graphs (25 nodes instead of 22.8,
  4.8 entities instead of 2.6). The one here was fitted to the 800 released puzzles: always
  `num_nodes` nodes, parents from one family only (orphans excluded), isolated nodes dropped, the
  question asked of the root whose deepest exclusive leaf is deeper.
- That last choice is a shortcut: the option farther from *every* entity is right in 91 % of cases,
  whoever is asked about (`blind_depth`). With shortcut=False both options lie equally deep below
  their roots and the asked root is drawn by a coin, so that any rule blind to it scores 50 %.
- The other root gives a second, well-posed question with the opposite answer on the same graph
  (`swapped`): who cannot answer both has not searched.

Records carry the released fields in `meta`: edges (parent, child), root, target, neg_target,
idx_to_symbol; and other_root where it is not 1 - root. Renderings: the text of the paper, and the
symbols of arXiv 2505.12514, "3 14 | 1 3 | [Q] 14 9 [R] 1", whose steps are edges. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from inward.data.thoughts.records import Record

ENTITIES = (
    "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren"
).split()
CONCEPTS = [
    stem + "pus"
    for stem in (
        "bom boom brim chor dum fel fom ger gor grim gwom hil im jel jom ker lem lor num quim rem "
        "rom ror scrom shum ster stor ter tim tum vum wor wum yer yim yum zhor zum"
    ).split()
]
QUERY, ROOT, BAR = "[Q]", "[R]", "|"
MAX_TRIES = 5000
"""Graphs drawn for one puzzle before the settings count as impossible."""

Rendering = Literal["text", "symbolic"]


def concepts(num: int) -> list[str]:
    """`num` concept names: the 38 of the release, then more of the same kind for larger graphs."""
    names = list(CONCEPTS)
    more = (a + b + c + "pus" for a in "bdfgklprstvz" for b in "aeiou" for c in "lmnrst")
    names += [name for name in more if name not in CONCEPTS]
    if num > len(names):
        raise ValueError(f"{num} concepts asked for, there are {len(names)} names; use fewer nodes")
    return names[:num]


# --------------------------------------------------------------------------------------------------
# Graphs


@dataclass(frozen=True)
class ProsQASettings:
    """How graphs are drawn; the defaults are the fit to the released files.

    num_nodes        nodes drawn, the two roots among them; isolated ones are dropped afterwards
    mean_parents     mean of the Poisson in-degree
    families         probability that a node's parents come from the exclusive family of root 0, and
                     of root 1; else from all nodes. The paper prints 0.35 and 0.35
    depth_weight     a node is chosen as parent with weight 1 + depth_weight * depth
    min_hops, max_hops   steps of the answer's shortest path. For 7 and more use 40 nodes or more
    hop_shares       shares of min_hops to max_hops, drawn first; (): as they come. Without the
                     shortcut long paths are rare (86 % have 3 hops), and this puts them back
    shortcut         True: as released; False: no rule blind to the asked root beats a coin
    """

    num_nodes: int = 28
    mean_parents: float = 1.5
    families: tuple[float, float] = (0.35, 0.45)
    depth_weight: float = 1.5
    min_hops: int = 3
    max_hops: int = 6
    hop_shares: tuple[float, ...] = ()
    shortcut: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_hops <= self.max_hops:
            raise ValueError(
                f"min_hops {self.min_hops} and max_hops {self.max_hops} must be 1 or more, in order"
            )
        num = self.max_hops - self.min_hops + 1
        if self.hop_shares and (len(self.hop_shares) != num or min(self.hop_shares) < 0):
            raise ValueError(
                f"hop_shares is {self.hop_shares}; give {num} shares, 0 or more, for "
                f"{self.min_hops} to {self.max_hops} hops"
            )
        needed = 2 + 2 * self.min_hops
        if self.num_nodes < needed:
            raise ValueError(
                f"num_nodes is {self.num_nodes}; two paths of {self.min_hops} hops from two roots "
                f"need {needed} or more"
            )
        if not (min(self.families) >= 0 and sum(self.families) <= 1):
            raise ValueError(f"families is {self.families}; two probabilities, at most 1 in all")
        if self.mean_parents <= 0 or self.depth_weight < 0:
            raise ValueError(
                f"mean_parents {self.mean_parents} must be above 0 and depth_weight "
                f"{self.depth_weight} 0 or more"
            )


@dataclass(frozen=True)
class Graph:
    """A question on an acyclic graph, as node numbers; `target` is below `root` only."""

    num_nodes: int
    edges: tuple[tuple[int, int], ...]
    root: int
    other_root: int
    target: int
    neg_target: int

    @property
    def swapped(self) -> Graph:
        """The question about the other root, with the opposite answer."""
        return Graph(
            self.num_nodes,
            self.edges,
            self.other_root,
            self.root,
            self.neg_target,
            self.target,
        )

    @property
    def children(self) -> list[list[int]]:
        """Children of each node."""
        found: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for parent, child in self.edges:
            found[parent].append(child)
        return found

    @property
    def entities(self) -> list[int]:
        """Nodes without parents: they carry names of persons."""
        below = {child for _, child in self.edges}
        return [node for node in range(self.num_nodes) if node not in below]


def distances(children: Sequence[Sequence[int]], start: int) -> dict[int, int]:
    """Hops from `start` to every node that can be reached (breadth first)."""
    found, queue = {start: 0}, [start]
    for node in queue:
        for child in children[node]:
            if child not in found:
                found[child] = found[node] + 1
                queue.append(child)
    return found


def shortest_path(graph: Graph, rng: np.random.Generator | None = None) -> list[int]:
    """One shortest path from root to target: all equally likely, or the first one without `rng`.

    Raises ValueError if the target cannot be reached.
    """
    children = graph.children
    depth = distances(children, graph.root)
    if graph.target not in depth:
        raise ValueError(f"the target {graph.target} cannot be reached from root {graph.root}")
    # ways[v]: shortest paths from v to the target, filled from the target upwards
    ways = {graph.target: 1}
    for node in sorted(depth, key=depth.__getitem__, reverse=True):
        if node != graph.target:
            down = {c for c in children[node] if depth[c] == depth[node] + 1}
            ways[node] = sum(ways.get(child, 0) for child in down)
    path = [graph.root]
    while path[-1] != graph.target:
        at = path[-1]
        down = sorted({c for c in children[at] if depth[c] == depth[at] + 1 and ways.get(c)})
        if rng is None or len(down) == 1:
            path.append(down[0])
        else:
            share = np.array([ways[c] for c in down]) / ways[at]
            path.append(int(rng.choice(down, p=share)))
    return path


def draw_graph(settings: ProsQASettings, rng: np.random.Generator) -> Graph:
    """Draw graphs until one holds a question within the settings.

    Raises ValueError after MAX_TRIES graphs.
    """
    hops = range(settings.min_hops, settings.max_hops + 1)
    if settings.hop_shares:
        shares = np.array(settings.hop_shares) / sum(settings.hop_shares)
        wanted = int(rng.choice(hops, p=shares))
        hops = range(wanted, wanted + 1)
    for _ in range(MAX_TRIES):
        graph = _try_graph(settings, hops, rng)
        if graph is not None:
            return graph
    raise ValueError(
        f"no graph of {settings.num_nodes} nodes had {hops.start} to {hops.stop - 1} "
        f"hops in {MAX_TRIES} tries; use more num_nodes, a larger depth_weight or fewer min_hops"
    )


def _try_graph(settings: ProsQASettings, hops: range, rng: np.random.Generator) -> Graph | None:
    labels, edges = _grow(settings, rng)
    touched = sorted({0, 1} | {node for edge in edges for node in edge})
    number = {node: i for i, node in enumerate(touched)}
    edges = [(number[a], number[b]) for a, b in edges]
    labels = [labels[node] for node in touched]
    children: list[list[int]] = [[] for _ in touched]
    for parent, child in edges:
        children[parent].append(child)
    # leaves[r]: (hops, node) of the leaves below root r and not below the other one
    leaves: list[list[tuple[int, int]]] = []
    for root in (0, 1):
        depth = distances(children, root)
        own = [n for n in depth if not children[n] and labels[n] == 1 << root and n != root]
        leaves.append(sorted((depth[n], n) for n in own))
    if not leaves[0] or not leaves[1]:
        return None
    choose = _released_choice if settings.shortcut else _fair_choice
    chosen = choose(leaves, hops, rng)
    if chosen is None:
        return None
    root, target, neg_target = chosen
    return Graph(len(touched), tuple(edges), root, 1 - root, target, neg_target)


def _grow(
    settings: ProsQASettings, rng: np.random.Generator
) -> tuple[list[int], list[tuple[int, int]]]:
    """Labels (bit r: below root r) and edges. All draws first: one call each is the fast way."""
    n = settings.num_nodes
    degrees = rng.poisson(settings.mean_parents, n).tolist()
    families = rng.random(n).tolist()
    # The k smallest exponential keys over weights are k weighted draws without replacement.
    keys = rng.exponential(size=(n, n)).tolist()
    first, second = settings.families
    labels, depths, edges = [1, 2], [0, 0], []
    for node in range(2, n):
        share = families[node]
        wanted = 1 if share < first else 2 if share < first + second else None
        pool = [p for p in range(node) if wanted is None or labels[p] == wanted]
        key = keys[node]
        pool.sort(key=lambda p, key=key: key[p] / (1 + settings.depth_weight * depths[p]))
        parents = pool[: degrees[node]]
        labels.append(0)
        depths.append(max((depths[p] + 1 for p in parents), default=0))
        for parent in sorted(parents):
            labels[node] |= labels[parent]
            edges.append((parent, node))
    return labels, edges


def _released_choice(
    leaves: list[list[tuple[int, int]]], hops: range, rng: np.random.Generator
) -> tuple[int, int, int] | None:
    """Ask the root whose deepest exclusive leaf is deeper for a deepest leaf; any other option."""
    deepest = [own[-1][0] for own in leaves]
    root = int(rng.random() < 0.5) if deepest[0] == deepest[1] else int(deepest[1] > deepest[0])
    if deepest[root] not in hops:
        return None
    targets = [node for depth, node in leaves[root] if depth == deepest[root]]
    return root, int(rng.choice(targets)), int(rng.choice([node for _, node in leaves[1 - root]]))


def _fair_choice(
    leaves: list[list[tuple[int, int]]], hops: range, rng: np.random.Generator
) -> tuple[int, int, int] | None:
    """Two leaves equally deep below their roots, the deepest there are; a coin asks one root."""
    first, second = ({depth for depth, _ in own} for own in leaves)
    common = first & second & set(hops)
    if not common:
        return None
    pair = [int(rng.choice([n for depth, n in own if depth == max(common)])) for own in leaves]
    root = int(rng.random() < 0.5)
    return root, pair[root], pair[1 - root]


# --------------------------------------------------------------------------------------------------
# Records


def graph_of(record: Record) -> Graph:
    """The graph in a record's `meta` (released, or made here).

    Raises ValueError that lists what is missing, or says what does not fit together.
    """
    meta = record.meta
    needed = ("edges", "root", "target", "neg_target", "idx_to_symbol")
    missing = [name for name in needed if name not in meta]
    if missing:
        raise ValueError(
            f"this record is no ProsQA puzzle: meta lacks {', '.join(missing)}; read the released "
            "JSON with inward.data.thoughts.records.read_json, or make puzzles with "
            "inward.data.thoughts.prosqa"
        )
    num_nodes, root = len(meta["idx_to_symbol"]), meta["root"]
    edges = tuple((int(a), int(b)) for a, b in meta["edges"])
    other = meta.get("other_root", 1 - root)
    ends = [root, other, meta["target"], meta["neg_target"], *(node for e in edges for node in e)]
    if min(ends) < 0 or max(ends) >= num_nodes:
        raise ValueError(
            f"this record names nodes {min(ends)} to {max(ends)}, but has {num_nodes} symbols"
        )
    return Graph(num_nodes, edges, root, other, meta["target"], meta["neg_target"])


def render(
    graph: Graph,
    rng: np.random.Generator,
    *,
    rendering: Rendering = "text",
    symbols: Sequence[str] | None = None,
    num_symbols: int | None = None,
) -> Record:
    """Write a graph down: sentences, options and the shortest path in random order.

    symbols       name of each node; drawn anew if None (persons for nodes without parents in text,
                  numbers below `num_symbols` in the symbolic rendering)
    num_symbols   numbers to draw from (default: as many as nodes, at least 28)
    """
    if rendering not in ("text", "symbolic"):
        raise ValueError(f"rendering is {rendering!r}; choose 'text' or 'symbolic'")
    if symbols is None:
        symbols = _names(graph, rng, rendering, num_symbols)
    if len(symbols) != graph.num_nodes:
        raise ValueError(f"{len(symbols)} symbols for {graph.num_nodes} nodes; give one each")
    edges = [graph.edges[i] for i in rng.permutation(len(graph.edges))]
    # sorted first: with equal draws a question and its swap list the options alike
    options = sorted((graph.target, graph.neg_target))[:: int(rng.choice((-1, 1)))]
    path = shortest_path(graph, rng)
    links = list(pairwise(path))
    write = _text if rendering == "text" else _symbolic
    question, steps, answer = write(graph, symbols, edges, options, links)
    meta: dict[str, Any] = {
        "idx_to_symbol": list(symbols),
        "edges": [list(edge) for edge in graph.edges],
        "root": graph.root,
        "target": graph.target,
        "neg_target": graph.neg_target,
    }
    if graph.other_root != 1 - graph.root:
        meta["other_root"] = graph.other_root
    return Record(question, tuple(steps), answer, meta)


def _names(
    graph: Graph, rng: np.random.Generator, rendering: Rendering, num_symbols: int | None
) -> list[str]:
    if rendering == "symbolic":
        num = max(28, graph.num_nodes) if num_symbols is None else num_symbols
        if num < graph.num_nodes:
            raise ValueError(f"num_symbols is {num}, but a graph has {graph.num_nodes} nodes")
        return [str(i) for i in rng.permutation(num)[: graph.num_nodes]]
    entities = set(graph.entities)
    if len(entities) > len(ENTITIES):
        raise ValueError(f"{len(entities)} entities, but there are {len(ENTITIES)} persons' names")
    kinds = concepts(max(len(CONCEPTS), graph.num_nodes - len(entities)))
    persons = [ENTITIES[i] for i in rng.permutation(len(ENTITIES))]
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    return [persons.pop() if n in entities else kinds.pop() for n in range(graph.num_nodes)]


def _text(
    graph: Graph,
    symbols: Sequence[str],
    edges: Iterable[tuple[int, int]],
    options: Sequence[int],
    links: Iterable[tuple[int, int]],
) -> tuple[str, list[str], str]:
    entities = set(graph.entities)

    def sentence(edge: tuple[int, int]) -> str:
        subject = symbols[edge[0]] if edge[0] in entities else f"Every {symbols[edge[0]]}"
        return f"{subject} is a {symbols[edge[1]]}."

    asked, (one, two) = symbols[graph.root], (symbols[n] for n in options)
    question = " ".join([*map(sentence, edges), f"Is {asked} a {one} or {two}?"])
    return question, [sentence(link) for link in links], f"{asked} is a {symbols[graph.target]}."


def _symbolic(
    graph: Graph,
    symbols: Sequence[str],
    edges: Iterable[tuple[int, int]],
    options: Sequence[int],
    links: Iterable[tuple[int, int]],
) -> tuple[str, list[str], str]:
    listed = f" {BAR} ".join(f"{symbols[a]} {symbols[b]}" for a, b in edges)
    asked = " ".join([QUERY, *(symbols[n] for n in options), ROOT, symbols[graph.root]])
    steps = [f"{symbols[a]} {symbols[b]}" for a, b in links]
    return f"{listed} {asked}", steps, symbols[graph.target]


def rendered(
    record: Record,
    rng: np.random.Generator,
    *,
    rendering: Rendering = "text",
    rename: bool = True,
    num_symbols: int | None = None,
) -> Record:
    """The same puzzle written anew: another order, another shortest path, other names.

    rename   False: keep the names (text), or number the nodes as the release does (symbolic). The
             release's numbers follow the generator's order, which alone is right in 59 % of cases
    """
    graph = graph_of(record)
    symbols = None
    if not rename:
        names = record.meta["idx_to_symbol"]
        symbols = names if rendering == "text" else [str(i) for i in range(graph.num_nodes)]
    return render(graph, rng, rendering=rendering, symbols=symbols, num_symbols=num_symbols)


def joined(record: Record) -> Record:
    """A symbolic puzzle whose question lists every edge as one word: "3_14 1_3 [Q] 14 9 [R] 1".

    A small model finds the child of a node in one look then, as it needs no head that first joins
    the two numbers of a pair (arXiv 2505.12514 gives its first layer to that). Steps stay pairs.

    Raises ValueError for another rendering.
    """
    head, mark, tail = record.question.partition(QUERY)
    if not mark:
        raise ValueError(f"{record.question[:40]!r} is not symbolic; only symbols can be joined")
    edges = ["_".join(edge.split()) for edge in head.split(BAR)]
    return replace(record, question=" ".join([*edges, mark + tail]))


def swapped(record: Record, rng: np.random.Generator | None = None) -> Record:
    """The question about the other root on the same graph: its right answer is this one's wrong.

    The order of sentences and options stays, so the pair differs in the asked name alone; with
    `rng` the path among the shortest is drawn.
    """
    graph = graph_of(record).swapped
    symbols = record.meta["idx_to_symbol"]
    path = shortest_path(graph, rng)
    links = list(pairwise(path))
    written = _symbolic if ROOT in record.question else _text
    _, steps, answer = written(graph, symbols, (), [graph.target, graph.neg_target], links)
    head, mark, tail = record.question.rpartition(ROOT if written is _symbolic else "Is ")
    old, new = symbols[graph.other_root], symbols[graph.root]
    if not mark or old not in tail.split():
        raise ValueError(f"cannot find {old!r} in the question ...{record.question[-60:]!r}")
    tail = " ".join([new if word == old else word for word in tail.split(" ")])
    meta = {**record.meta, "root": graph.root, "target": graph.target}
    meta["neg_target"] = graph.neg_target
    return Record(head + mark + tail, tuple(steps), answer, meta)


def key(record: Record) -> tuple[int, int]:
    """A number pair that equal puzzles share, whatever their names, order or asked root.

    Colour refinement of the graph with its two roots and leaves marked: puzzles that differ almost
    never collide, and a collision only costs one puzzle that would have been allowed.
    """
    graph = graph_of(record)
    return tuple(sorted((_colour(graph), _colour(graph.swapped))))  # pyright: ignore[reportReturnType]


def _colour(graph: Graph) -> int:
    roles = {graph.root: 1, graph.other_root: 2, graph.target: 3, graph.neg_target: 4}
    colours = [roles.get(node, 0) for node in range(graph.num_nodes)]
    for _ in range(5):  # as deep as most graphs
        around: list[tuple[list[int], list[int]]] = [([], []) for _ in colours]
        for parent, child in graph.edges:
            around[parent][1].append(colours[child])
            around[child][0].append(colours[parent])
        colours = [
            hash((colour, tuple(sorted(above)), tuple(sorted(below))))
            for colour, (above, below) in zip(colours, around, strict=True)
        ]
    return hash(tuple(sorted(colours)))


def generate(
    num: int,
    *,
    seed: int,
    settings: ProsQASettings = ProsQASettings(),
    rendering: Rendering = "text",
    exclude: Iterable[Record] = (),
    pairs: bool = False,
) -> list[Record]:
    """Make `num` puzzles, no two the same; puzzle i depends on (seed, i) and what it may not be.

    exclude   puzzles of which no copy may appear, whatever its names, order or root: the test set
    pairs     every second record is the one before it with the other root: `num` must be even
    Raises ValueError for settings that no graph meets, or an odd number of paired records.
    """
    if num < 1 or (pairs and num % 2):
        raise ValueError(f"num is {num}; give 1 or more puzzles, an even number with pairs=True")
    seen = {key(record) for record in exclude}
    records: list[Record] = []
    while len(records) < num:
        rng = np.random.default_rng([seed, len(records)])
        record = render(draw_graph(settings, rng), rng, rendering=rendering)
        while (own := key(record)) in seen:
            record = render(draw_graph(settings, rng), rng, rendering=rendering)
        seen.add(own)
        records += [record, swapped(record, rng)] if pairs else [record]
    return records


# --------------------------------------------------------------------------------------------------
# What a set looks like, and what can be known without reading the question


def blind_depth(record: Record) -> float:
    """Probability that the blind rule is right: take the option farther from *every* entity.

    Distance: the fewest hops from any entity; equal distances are a coin (0.5). The asked entity is
    never looked at, so on a question and its swap the two probabilities add up to 1.
    """
    graph = graph_of(record)
    reach = [distances(graph.children, entity) for entity in graph.entities]
    far = [min(d[n] for d in reach if n in d) for n in (graph.target, graph.neg_target)]
    return 0.5 if far[0] == far[1] else float(far[0] > far[1])


def statistics(records: Sequence[Record]) -> dict[str, float]:
    """Means over a set: nodes (and sd), edges, entities, hops, blind_depth, and shares.

    root_1 is the share of puzzles that ask the root with the larger number, hops_3 and so on those
    with so many hops; label_none, _0, _1, _both the shares of nodes below no root, one, or both.
    """
    graphs = [graph_of(record) for record in records]
    nodes = np.array([graph.num_nodes for graph in graphs])
    hops = [distances(graph.children, graph.root)[graph.target] for graph in graphs]
    labels = np.concatenate([_labels(graph) for graph in graphs])
    found = {
        "nodes": float(nodes.mean()),
        "nodes_sd": float(nodes.std()),
        "edges": float(np.mean([len(graph.edges) for graph in graphs])),
        "entities": float(np.mean([len(graph.entities) for graph in graphs])),
        "hops": float(np.mean(hops)),
        "root_1": float(np.mean([graph.root > graph.other_root for graph in graphs])),
        "blind_depth": float(np.mean([blind_depth(record) for record in records])),
    }
    found |= {f"hops_{h}": count / len(hops) for h, count in sorted(Counter(hops).items())}
    names = ("none", "0", "1", "both")
    return found | {f"label_{n}": float(np.mean(labels == i)) for i, n in enumerate(names)}


def _labels(graph: Graph) -> np.ndarray:
    """(num_nodes,) int: bit 0 below the root with the smaller number, bit 1 below the other."""
    labels = np.zeros(graph.num_nodes, dtype=np.int64)
    for bit, root in enumerate(sorted((graph.root, graph.other_root))):
        labels[list(distances(graph.children, root))] |= 1 << bit
    return labels
