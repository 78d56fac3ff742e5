"""LoRA adds alpha / rank * B A to the attention projections, and merges into weights that a plain model takes."""

from __future__ import annotations

import pytest
import torch

from ast_core.config import ModelConfig
from ast_core.errors import UserError
from ast_core.model.lora import LoraLinear, add_lora, merged_weights
from ast_core.model.transformer import AST

MODEL = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch")
RANK, ALPHA = 4, 12.0


def make_model() -> AST:
    torch.manual_seed(0)
    return AST(MODEL, 16, 32, 3).eval()


def test_layer_computes_the_formula_and_its_gradient() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(10, 7).double()
    layer = LoraLinear(plain, RANK, ALPHA)
    torch.nn.init.normal_(layer.lora_b)
    weight = (plain.weight + ALPHA / RANK * layer.lora_b @ layer.lora_a).detach().requires_grad_()
    input_BI = torch.randn(5, 10, dtype=torch.float64)
    output_BO = layer(input_BI)
    expected_BO = input_BI @ weight.T + plain.bias
    torch.testing.assert_close(output_BO, expected_BO)
    torch.testing.assert_close(layer.merge(), weight.detach())
    output_BO.square().sum().backward()
    expected_BO.square().sum().backward()
    assert weight.grad is not None  # of which the chain rule makes the gradients of A and B
    torch.testing.assert_close(layer.lora_a.grad, ALPHA / RANK * layer.lora_b.detach().T @ weight.grad)
    torch.testing.assert_close(layer.lora_b.grad, ALPHA / RANK * weight.grad @ layer.lora_a.detach().T)


def test_added_updates_change_nothing_at_first_and_merge_into_a_plain_model() -> None:
    model, plain = make_model(), make_model()
    add_lora(model, RANK, ALPHA)
    fbank_BTM = torch.randn(2, 32, 16)
    assert torch.equal(model(fbank_BTM), plain(fbank_BTM))
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(adapted) == 2 * len(model.blocks)
    for layer in adapted:
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    weights = merged_weights(model)
    assert list(weights) == list(plain.state_dict())
    assert not torch.allclose(model(fbank_BTM), plain(fbank_BTM), atol=1e-3)
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(fbank_BTM), model(fbank_BTM), atol=1e-5, rtol=1e-5)
    changed = {name for name, value in make_model().state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {f"blocks.{n}.attn.{part}.weight" for n in range(len(model.blocks)) for part in ("qkv", "proj")}


def test_model_without_lora_keeps_its_weights() -> None:
    model = make_model()
    weights = merged_weights(model)
    assert list(weights) == list(model.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_rank_above_the_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.lora-rank is 97, and the backbone is only 96 wide"):
        add_lora(make_model(), 97, ALPHA)
