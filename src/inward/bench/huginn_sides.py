"""The processes of `huginn`: ours, the official module, and the products alone.

"outputs" answers with logits to compare, "time CONTEXT" with the seconds of a prompt and of each
token after it, as the side's own generator says them; see `process`.

The official side runs on transformers 4.53, so this file imports nothing of inward's model code
before it knows which side it is.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from inward.bench.process import Side, clock, commit_of, serve

MODEL_FILE = Path("recpre", "raven_modeling_minimal.py")
"""The official module, in a clone of seal-rg/recurrent-pretraining."""
SHORT = 16
"""Tokens of the prompt whose logits are compared."""


@dataclass(frozen=True)
class HuginnOrder:
    """What a process is told to build."""

    side: str
    kind: Literal["ours", "official", "products"]
    config: dict[str, Any]
    depth: int
    dtype: str
    num_new: int
    sharing: str = "deepest"
    packed: bool | None = None
    weights: str = ""
    reference: str = ""
    threads: int = 1


def serve_order() -> None:
    """Be the side that the order on standard input names."""
    serve(lambda order: build(HuginnOrder(**order)))


def build(order: HuginnOrder) -> Side:
    """The side of that order."""
    import torch

    torch.set_num_threads(order.threads)
    kinds: dict[str, Callable[[HuginnOrder], Side]] = {"ours": Ours, "official": Official}
    return (kinds | {"products": Products})[order.kind](order)


def prompt(order: HuginnOrder, length: int) -> Any:
    """(1, length) random tokens."""
    import torch

    generator = torch.Generator().manual_seed(length)
    return torch.randint(order.config["vocab_size"], (1, length), generator=generator)


class _Model:
    """What both models share: "outputs" and "time CONTEXT"."""

    flops: dict[str, float] = {}  # noqa: RUF012 - nothing is counted here
    about = ""

    def __init__(self, order: HuginnOrder):
        self.order, self.clock = order, clock(order.threads)

    def do(self, word: str) -> dict[str, Any]:
        """Logits, or seconds of the prompt and of each token but the first."""
        if word == "outputs":
            tokens = prompt(self.order, SHORT + 4)
            return {"logits": self.logits(tokens[:, :SHORT], tokens[0, SHORT:].tolist())}
        stamps = [self.clock()]
        said = self.generate(prompt(self.order, int(word.split()[1])), stamps)
        spent = [after - before for before, after in itertools.pairwise(stamps)]
        return {"prompt": spent[0], "tokens": spent[1:], "said": said}

    def logits(self, tokens: Any, more: Sequence[int]) -> list[list[float]]:
        """Of the last prompt token, and of `more` tokens fed one by one."""
        raise NotImplementedError

    def generate(self, tokens: Any, stamps: list[float]) -> list[int]:
        """Say num_new tokens and note the time of each."""
        raise NotImplementedError


class Ours(_Model):
    """`generate` of this library at batch 1."""

    def __init__(self, order: HuginnOrder):
        super().__init__(order)
        import torch
        from safetensors.torch import load_file

        from inward.methods.huginn.config import HuginnConfig
        from inward.methods.huginn.model import HuginnForCausalLM

        model = HuginnForCausalLM(HuginnConfig(**order.config))
        found = model.load_state_dict(load_file(order.weights), strict=False)
        assert set(found.missing_keys) <= {"lm_head.weight"}, found
        self.model = model.eval().to(getattr(torch, order.dtype))

    def logits(self, tokens: Any, more: Sequence[int]) -> list[list[float]]:
        import torch

        from inward.methods.huginn.cache import RecurrentCache
        from inward.methods.huginn.cpu import thinking

        out, cache = [], RecurrentCache(self.order.sharing, num_recurrences=self.order.depth)
        model = thinking(self.model, self.order.packed)
        with torch.inference_mode():
            for new in (tokens, *(torch.tensor([[token]]) for token in more)):
                said = model(
                    new,
                    past_key_values=cache,
                    num_steps=self.order.depth,
                    state=torch.zeros(*new.shape, model.config.n_embd),
                )
                out.append(said.logits[0, -1].float().tolist())
        return out

    def generate(self, tokens: Any, stamps: list[float]) -> list[int]:
        from inward.methods.huginn.generate import generate

        out = generate(
            self.model,
            tokens,
            max_new_tokens=self.order.num_new,
            max_steps=self.order.depth,
            sharing=self.order.sharing,
            start="zero",
            eos_token_id=(),
            batch_size=1,
            on_token=lambda *_: stamps.append(self.clock()),
            packed=self.order.packed,
        )
        return out.answers[0]


class Official(_Model):
    """`generate_minimal` of the official module with its default cache, from a zero state."""

    def __init__(self, order: HuginnOrder):
        super().__init__(order)
        import torch
        import transformers
        from safetensors.torch import load_file

        clone = Path(order.reference)
        package = ModuleType("raven_reference")  # its own __init__ imports the training code
        package.__path__ = [str(clone / MODEL_FILE.parent)]
        sys.modules[package.__name__] = package
        warnings.filterwarnings("ignore", category=FutureWarning)
        self.module: Any = importlib.import_module(f"raven_reference.{MODEL_FILE.stem}")
        config = {
            name: order.config[name]
            for name in ("n_embd", "intermediate_size", "vocab_size", "block_size", "n_heads")
        }
        for part in ("prelude", "recurrent_block", "coda"):
            config[f"n_layers_in_{part}"] = order.config[f"n_layers_in_{part}"]
        config["mean_recurrence"] = order.depth
        model = self.module.RavenForCausalLM(self.module.RavenConfig(**config))
        found = model.load_state_dict(load_file(order.weights), strict=False)
        assert set(found.missing_keys) <= {"lm_head.weight", "freqs_cis"}, found
        table = model.freqs_cis
        self.model = model.eval().to(getattr(torch, order.dtype))
        self.model.freqs_cis = table  # .to() rounds it, from_pretrained would not
        self.about = (
            f"{clone}, commit {commit_of(clone)}: generate_minimal with HuginnDynamicCache, "
            f"transformers {transformers.__version__}, torch {torch.__version__}"
        )

    def logits(self, tokens: Any, more: Sequence[int]) -> list[list[float]]:
        import torch

        out, seen = [], 0
        cache = self.module.HuginnDynamicCache()
        with torch.inference_mode():
            for new in (tokens, *(torch.tensor([[token]]) for token in more)):
                said = self.model(
                    new,
                    past_key_values=cache,
                    use_cache=True,
                    cache_position=torch.arange(seen, seen + new.shape[1]),
                    num_steps=self.order.depth,
                    init_scale=0.0,
                )
                seen += new.shape[1]
                out.append(said.logits[0, -1].float().tolist())
        return out

    def generate(self, tokens: Any, stamps: list[float]) -> list[int]:
        import torch

        now = self.clock

        class Listen:
            def put(self, token: Any) -> None:
                stamps.append(now())

            def end(self) -> None:
                pass

        with torch.inference_mode():
            out = self.model.generate_minimal(
                tokens,
                streamer=Listen(),
                max_new_tokens=self.order.num_new,
                init_scale=0.0,
                num_steps=self.order.depth,
            )
        return out[0, tokens.shape[1] :].tolist()


# --------------------------------------------------------------------------------------------------
# The products alone


class Products:
    """One row times every matrix of a recurrence, in turn, as a token does: each in the fastest of
    several layouts. "rate" answers with bytes of weights per second and the layout."""

    flops: dict[str, float] = {}  # noqa: RUF012
    about = ""

    def __init__(self, order: HuginnOrder):
        import torch

        d, m = order.config["n_embd"], order.config["intermediate_size"]
        block = [(3 * d, d), (d, d), (2 * m, d), (d, m)]
        shapes = [(d, 2 * d)] + block * order.config["n_layers_in_recurrent_block"]
        dtype = getattr(torch, order.dtype)
        weights = [torch.randn(shape).to(dtype) for shape in shapes]
        rows = [torch.randn(1, shape[1]).to(dtype) for shape in shapes]
        self.bytes = sum(w.numel() * w.element_size() for w in weights)
        self.clock = clock(order.threads)
        self.forms = product_forms(weights, rows)

    def do(self, word: str) -> dict[str, Any]:
        """The best rate of a few passes, which is what the hardware can do."""
        assert word == "rate", word
        best, name = min(
            (self.seconds(form), name) for name, form in self.forms.items() for _ in range(10)
        )
        return {"rate": self.bytes / best, "form": name}

    def seconds(self, form: Callable[[], Any]) -> float:
        """How long a pass takes."""
        import torch

        with torch.inference_mode():
            began = self.clock()
            form()
            return self.clock() - began


def product_forms(weights: list[Any], rows: list[Any]) -> dict[str, Callable[[], list[Any]]]:
    """Ways to compute x W^T for each pair: as it lies, turned once before, packed by oneDNN."""
    import torch

    turned = [w.T.contiguous() for w in weights]
    forms: dict[str, Callable[[], list[Any]]] = {
        "linear": lambda: [
            torch.nn.functional.linear(x, w) for x, w in zip(rows, weights, strict=True)
        ],
        "turned": lambda: [torch.mm(x, w) for x, w in zip(rows, turned, strict=True)],
    }
    if torch.backends.mkldnn.is_available():
        pack, times = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        with torch.inference_mode():
            for name, hint in (("packed for one row", 1), ("packed", 16)):
                packed = [pack(w, hint) for w in weights]
                forms[name] = lambda packed=packed: [
                    times(x, w, None, "none", [], "") for x, w in zip(rows, packed, strict=True)
                ]
    return forms
