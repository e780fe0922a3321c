"""What the runs of Coconut begin with: a small model from scratch, a trained one, or a run's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from inward.data.thoughts.curriculum import Curriculum
from inward.data.thoughts.patterns import Cot, NoCot
from inward.methods.coconut.settings import CoconutSettings

if TYPE_CHECKING:
    from torch import nn

    from inward.methods.coconut.model import Coconut


@dataclass(frozen=True)
class SmallBase:
    """A GPT-2 or Llama type from scratch over the words of the data.

    init_std   spread of the initial weights. The libraries' 0.02 was chosen for widths of 768 and
               more; 1 / sqrt(width) is 0.125 at 64
    """

    kind: Literal["gpt2", "llama"] = "gpt2"
    num_layers: int = 2
    width: int = 128
    num_heads: int = 4
    max_positions: int = 320
    init_std: float = 0.02

    def build(self, vocab_size: int, eos: int) -> nn.Module:
        """The untrained model; draws from torch's global generator (seed it first)."""
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        shared: dict[str, Any] = {
            "vocab_size": vocab_size,
            "max_position_embeddings": self.max_positions,
            "bos_token_id": eos,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "initializer_range": self.init_std,
        }
        if self.kind == "gpt2":
            dropped = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
            shape = {"n_embd": self.width, "n_layer": self.num_layers, "n_head": self.num_heads}
            config = GPT2Config(**shared, **shape, **dropped)
            return GPT2LMHeadModel(config)
        return LlamaForCausalLM(
            LlamaConfig(
                **shared,
                hidden_size=self.width,
                intermediate_size=4 * self.width,
                num_hidden_layers=self.num_layers,
                num_attention_heads=self.num_heads,
                tie_word_embeddings=True,
            )
        )


@dataclass(frozen=True)
class PretrainedBase:
    """A trained model with its tokenizer: a name that `inward.common.bases` knows, a folder, or the
    hub's.

    start_like  token whose rows the three new tokens start from, as in the released code
    lora_rank   train low-rank weights (PEFT) on all linear layers and the rows of the new tokens,
                and nothing else; 0: train everything
    pause       also give it the pause token (the layout "pause" always does), so that runs of all
                layouts have one vocabulary and can start from each other
    """

    path: str = "openai-community/gpt2"
    start_like: str = "<<"
    lora_rank: int = 0
    pause: bool = False


def check_thinking(thinking: CoconutSettings, curriculum: Curriculum) -> None:
    """Raise a ValueError for options of the wrapper that a run would not heed."""
    if thinking.distill or thinking.step_decoder:
        raise ValueError(
            f"distill {thinking.distill} and step_decoder {thinking.step_decoder} need teachers "
            "and steps in each batch, which recipes do not make; set them to 0"
        )
    silent = curriculum.layout.thought != "latent" or isinstance(curriculum.pattern, Cot | NoCot)
    if silent and thinking.feedback != "none":
        raise ValueError(
            f"feedback is {thinking.feedback!r}, but this curriculum has no thoughts to feed back; "
            "leave it out, or choose another curriculum"
        )
    if thinking.superpose:
        replace(curriculum, span=thinking.span)  # which checks


def adapted(model: Any, base: PretrainedBase, tokens: list[int]) -> nn.Module:
    """The model below a LoRA that also trains the rows of `tokens`; alpha is twice the rank."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=base.lora_rank,
        lora_alpha=2 * base.lora_rank,
        target_modules="all-linear",
        trainable_token_indices=tokens,
    )
    return cast("nn.Module", get_peft_model(model, config))


def start_from(model: Coconut, folder: str) -> None:
    """Put the base's weights of a saved model into this one.

    Raises ValueError that says which words or weights differ.
    """
    from inward.common.weights import check_fit
    from inward.hub import resolve
    from inward.methods.coconut.model import Coconut

    path = resolve(folder)
    other = Coconut.from_pretrained(path)
    here, there = (m.tokenizer.get_vocab() if m.tokenizer else {} for m in (model, other))
    differing = sorted(dict(here.items() ^ there.items()))
    if differing:
        raise ValueError(
            f"{path} was trained with another vocabulary; {len(differing)} words or their numbers "
            f"differ, such as {', '.join(map(repr, differing[:5]))}. Start from a run on data of "
            "the same kind"
        )
    weights = other.base.state_dict()
    check_fit(weights, model.base.state_dict(), path)
    model.base.load_state_dict(weights)
