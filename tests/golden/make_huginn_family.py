"""Golden values of the Huginn family, made by running the authors' own modules.

    python tests/golden/make_huginn_family.py recpre CLONE OUT
    python tests/golden/make_huginn_family.py retrofit CLONE OUT

CLONE: a checkout of seal-rg/recurrent-pretraining (made with 59e0b69, any torch), or of
LoopedLMs/retrofitting-recurrence (with transformers 4.51, which its modules need). OUT: a folder
that gets one folder a variant: config.json as the authors write it, model.safetensors (weights that
sit at no initial value), reference.safetensors (`input_ids`, `input_states`, `logits.r1`,
`logits.r4`, and what else a variant says).

Nothing of the clones is changed or copied; what is only for their training (Triton kernels,
loggers, clusters) is not imported, an empty module stands in its place.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before Triton is no longer what torch thinks it is
import torch.utils.checkpoint
from safetensors.torch import save_file
from torch import Tensor

SEED = 20261201
SHAPE = {"n_embd": 16, "intermediate_size": 24, "vocab_size": 40, "block_size": 32}
LAYERS = {"n_layers_in_prelude": 1, "n_layers_in_recurrent_block": 2, "n_layers_in_coda": 1}
DEPTH = {"mean_recurrence": 4, "mean_backprop_depth": 2}
USUAL: dict[str, Any] = SHAPE | LAYERS | DEPTH
USUAL |= {"num_attention_heads": 4, "padding_multiple": 8, "tie_embeddings": True, "bias": False}
USUAL |= {"norm_class_name": "RMSNorm_llama", "norm_eps": 1e-6, "mlp_class_name": "GatedMLP"}
USUAL |= {"nonlin_name": "SiLU", "init_strategy": "takase", "injection_type": "linear"}

VARIANTS: dict[str, dict[str, Any]] = {
    # corone-raven-3.5b, with the heads of baby-recurrent-200m
    "prenorm-gqa": {"block_class_name": "TransformerPreNormBlock", "num_key_value_heads": 2},
    "sandwich-untied": {"block_class_name": "SandwichBlock", "tie_embeddings": False},
    # magpie-150m
    "postnorm-add": {
        "block_class_name": "TransformerPostNormBlock",
        "injection_type": "add",
        "init_strategy": "scaled",
        "init_orthogonal": True,
        "norm_eps": 1e-5,
    },
    # merseburg-raven-3.5b
    "sandwich-bare-norm": {
        "block_class_name": "SandwichBlock",
        "norm_class_name": "UnparametrizedRMSNorm",
        "injection_type": "add",
        "init_strategy": "scaled",
        "state_init": "unit",
    },
    "branch-sandwich-ffn": {
        "block_class_name": "SandwichBlockSwin",
        "norm_class_name": "GemmalikeRMS",
        "injection_type": "ffn",
        "mlp_class_name": "BaseMLP",
        "nonlin_name": "GELU",
        "state_init": "embed",
        "qk_bias": True,
    },
    "branch-gate-layernorm": {
        "block_class_name": "SwinScaledBlock",
        "norm_class_name": "LayerNorm",
        "injection_type": "gate",
        "mlp_class_name": "GatedMLPSeparated",
        "nonlin_name": "ReLU2",
        "init_strategy": "takase-scaled",
        "state_init": "normal",
    },
    "prenorm-qk-norm": {
        "block_class_name": "TransformerPreNormBlock",
        "norm_class_name": "OlmoLayerNorm",
        "mlp_class_name": "HalfGateMLP",
        "nonlin_name": "ReLU",
        "init_strategy": "normal",
        "qk_norm": True,
        "clip_qkv": 0.5,
        "num_key_value_heads": 1,
    },
}
"""Of recurrent-pretraining: name -> what differs from USUAL."""


# --------------------------------------------------------------------------------------------------
# What is only for training


class Anything(types.ModuleType):
    """A module of which every name exists; a decorator of it returns what it decorates."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in


def stand_in(*args: Any, **kwargs: Any) -> Any:
    """A decorator, with or without arguments, or nothing."""
    plain = len(args) == 1 and callable(args[0]) and not kwargs
    return args[0] if plain else stand_in


def package(name: str, path: Path) -> None:
    """A package whose own __init__ is not run."""
    module = types.ModuleType(name)
    module.__path__ = [str(path)]
    sys.modules[name] = module


def import_recpre(clone: Path) -> Any:
    """(the configurations' module, the models' module)."""
    triton: Any = Anything("triton")
    sys.modules["triton"] = triton
    triton.language = sys.modules["triton.language"] = Anything("triton.language")
    package("recpre", clone / "recpre")
    package("recpre.attention_backends", clone / "recpre" / "attention_backends")
    sdpa = importlib.import_module("recpre.attention_backends.pytorch").attention_computation_sdpa
    sys.modules["recpre.attention_backends"].select_attention_implementation = (  # type: ignore
        lambda **options: lambda q, k, v, mask=None: sdpa(q, k, v, mask)
    )
    utils = types.ModuleType("recpre.utils")
    utils.find_multiple = lambda n, k: -(-n // k) * k  # type: ignore[attr-defined]
    sys.modules["recpre.utils"] = utils
    sys.modules["recpre.ops"] = Anything("recpre.ops")
    own = types.ModuleType("recpre.checkpoint_patch")  # one function of torch, for meta tensors
    name = "_checkpoint_without_reentrant_generator"
    setattr(own, name, getattr(torch.utils.checkpoint, name))
    sys.modules["recpre.checkpoint_patch"] = own
    return importlib.import_module("recpre.config_dynamic"), importlib.import_module(
        "recpre.model_dynamic"
    )


# --------------------------------------------------------------------------------------------------
# Values


@torch.no_grad()
def perturb(model: torch.nn.Module) -> None:
    """No weight sits at its initial value."""
    generator = torch.Generator().manual_seed(SEED)
    for name, p in sorted(model.named_parameters()):
        size = 0.1 if p.ndim == 2 and "norm" not in name else 0.3
        p.add_(torch.randn(p.shape, generator=generator) * size)


def inputs(d: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Token ids (2, 9), states (2, 9, d)."""
    generator = torch.Generator().manual_seed(SEED + 1)
    ids = torch.randint(1, vocab, (2, 9), generator=generator)
    return ids, torch.randn(2, 9, d, generator=generator) * 0.6


def write(
    folder: Path, config: dict[str, Any], model: torch.nn.Module, found: dict[str, Tensor]
) -> None:
    """The three files of a variant."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    weights = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    tied = "lm_head.weight" in weights and torch.equal(
        weights["lm_head.weight"], weights["transformer.wte.weight"]
    )
    dropped = {"freqs_cis"} | ({"lm_head.weight"} if tied else set())
    kept = {k: v for k, v in weights.items() if k not in dropped}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    found = {k: v.detach().clone().contiguous() for k, v in found.items()}
    save_file(found, folder / "reference.safetensors")
    print(folder.name, {k: tuple(v.shape) for k, v in found.items()})


# --------------------------------------------------------------------------------------------------
# recurrent-pretraining


def make_recpre(clone: Path, out: Path) -> None:
    """All of VARIANTS."""
    configs, _ = import_recpre(clone)
    for name, change in VARIANTS.items():
        torch.manual_seed(SEED)
        config = configs.RecurrentConfig(architecture_class_name="RecurrentGPT", **USUAL | change)
        objective = {"ignore_index": -100, "z_regularization": 0.0}
        model = config.construct_model(objective=objective).eval()
        perturb(model)
        ids, states = inputs(config.n_embd, config.vocab_size)
        found = {"input_ids": ids, "input_states": states}
        model.initialize_state = lambda e, states=states: states[:, : e.shape[1]]
        for r in (1, 4):
            pair = torch.tensor([0, r])
            with torch.no_grad():
                out_r = model(ids, return_logits=True, num_steps_pair=pair)
            found[f"logits.r{r}"] = out_r["logits"]
        out_grad = model(
            ids[:, :-1], labels=ids[:, 1:].contiguous(), num_steps_pair=torch.tensor([1, 2])
        )
        out_grad["loss"].backward()
        found["loss.n1k2"] = out_grad["loss"]
        for where, p in model.named_parameters():
            found[f"grad.n1k2.{where}"] = torch.zeros(()) if p.grad is None else p.grad.norm()
        row = {k: v for k, v in dataclasses.asdict(config).items() if is_plain(v)}
        write(out / name, row | {"model_type": "huginn_raven"}, model, found)


def is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


# --------------------------------------------------------------------------------------------------
# retrofitting-recurrence


def make_retrofit(clone: Path, out: Path) -> None:
    """A Llama and an OLMo-2 of four layers, converted and run as that paper does."""
    package("convert_pretrained_model", clone / "convert_pretrained_model")
    for kind in ("llama", "olmo"):
        retrofit(kind, out)


def small_base(kind: str) -> Any:
    """A model of five layers as transformers makes it."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 40}
    sizes["num_hidden_layers"] = 5
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    sizes |= {"tie_word_embeddings": False, "attn_implementation": "eager"}
    if kind == "llama":
        scaling = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0}
        scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        config = transformers.LlamaConfig(**sizes, **{"rope_theta": 5e3, "rope_scaling": scaling})
        return transformers.LlamaForCausalLM(config)
    rope: dict[str, Any] = {"rope_theta": 5e5, "rms_norm_eps": 1e-6}
    config = transformers.Olmo2Config(**sizes, **rope)
    return transformers.Olmo2ForCausalLM(config)


def retrofit(kind: str, out: Path) -> None:
    """One of the two: the base model, its conversion, and what both say."""
    where = "convert_pretrained_model"
    modeling = importlib.import_module(f"{where}.raven_modeling_minimal_{kind}")
    settings = importlib.import_module(f"{where}.raven_config_minimal")
    convert = importlib.import_module(f"{where}.convert_{kind}")
    torch.manual_seed(SEED)
    base = small_base(kind).eval()
    perturb(base)
    of = base.config
    # what get_llama_huginn_config and get_olmo_huginn_config set, on the published configuration
    config = settings.RavenConfig()
    said: dict[str, Any] = {"head_dim": 4, "intermediate_size": 24, "n_embd": 16, "n_heads": 4}
    said["n_layers"] = 4
    said |= {"num_key_value_heads": 2, "n_layers_in_prelude": 1, "n_layers_in_coda": 1}
    said |= {"n_layers_in_recurrent_block": 2, "norm_eps": 1e-5 if kind == "llama" else 1e-6}
    said |= {"vocab_size": 40, "padded_vocab_size": 40, "tie_embeddings": False, "qk_bias": False}
    said |= {"rope_base": 5e5, "rope_theta": of.rope_theta, "max_position_embeddings": 64}
    if kind == "llama":
        said["rope_scaling"] = dict(of.rope_scaling)
    for name, value in said.items():
        setattr(config, name, value)
    config.init_values["embed_scale"] = 1.0
    model = modeling.RavenForCausalLM(config).eval()
    adapter = torch.randn(16, 32, generator=torch.Generator().manual_seed(SEED)) * 0.2
    own = model.state_dict() | {"transformer.adapter.weight": adapter}
    layers = {"prelude_idx": [0], "core_idx": [2, 3], "coda_idx": [4]}
    weights = convert.weight_mapping(base.state_dict(), dict(own), layers)
    weights["transformer.adapter.weight"] = adapter
    model.load_state_dict(weights)
    ids, states = inputs(16, 40)
    found = {"input_ids": ids, "input_states": states}
    with torch.no_grad():
        for r in (1, 4):
            run = model(ids, input_states=states, num_steps=r)
            found |= {f"logits.r{r}": run.logits, f"latents.r{r}": run.latent_states}
        kept = [base.model.layers[i] for i in (0, 2, 3, 4)]
        base.model.layers = torch.nn.ModuleList(kept)
        layers: Any = base.model.layers
        for i, layer in enumerate(layers):
            layer.self_attn.layer_idx = i
        found["logits.base"] = base(ids, use_cache=False).logits
    row = json.loads(config.to_json_string(use_diff=True))
    write(out / f"retrofit-{kind}", row, model, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("which", choices=["recpre", "retrofit"])
    parser.add_argument("clone", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    make = make_recpre if args.which == "recpre" else make_retrofit
    make(args.clone.resolve(), args.out)


if __name__ == "__main__":
    main()
