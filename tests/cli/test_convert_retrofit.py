"""`inward convert retrofit`: a Llama folder becomes a Huginn folder."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inward import hub
from inward.cli.convert import convert


def test_convert_retrofit(tmp_path, capsys):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "vocab_size": 60,
        "num_hidden_layers": 6,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    base.save_pretrained(tmp_path / "base")
    words = [str(tmp_path / "base"), str(tmp_path / "deep"), "--layers", "1", "2", "2"]
    assert convert(["retrofit", *words, "--mean-recurrence", "4"]) == 0
    said = capsys.readouterr().out
    assert float(said.rpartition(" ")[2]) < 1e-5
    model = hub.load(tmp_path / "deep")
    assert model.config.layers == (1, 2, 2) and model.config.mean_recurrence == 4
    tokens = torch.arange(1, 9)[None]
    base.model.layers = torch.nn.ModuleList(base.model.layers[i] for i in (0, 2, 3, 4, 5))
    with torch.no_grad():
        want = base(tokens, use_cache=False).logits
        torch.testing.assert_close(model(tokens, num_steps=1).logits, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"deep exists; remove it"):
        convert(["retrofit", *words])
    with pytest.raises(ValueError, match="begin at layer -2 of 6"):
        convert(["retrofit", words[0], str(tmp_path / "other"), "--layers", "2", "4", "4"])
    assert not (tmp_path / "other").exists()
