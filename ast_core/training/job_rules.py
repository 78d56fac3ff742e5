"""Rules between settings of different sections. Importing this module loads no torch: the command line checks them."""

from __future__ import annotations

from ast_core.config import DataConfig, ModelConfig, OptimConfig
from ast_core.errors import require


def require_consistent(data: DataConfig, model: ModelConfig, optim: OptimConfig) -> None:
    """Raise UserError if settings of the training contradict each other."""
    require(
        not optim.early_stopping_epochs or bool(data.validation_split),
        f"optim.early-stopping-epochs is {optim.early_stopping_epochs} and data.validation-split is empty: the test "
        "split must not choose the last epoch. Name a validation split, or set optim.early-stopping-epochs to 0.",
    )
    require(
        not (model.lora_rank and optim.freeze_backbone_epochs == -1),
        f"model.lora-rank is {model.lora_rank} and optim.freeze-backbone-epochs is -1: LoRA's updates of the backbone "
        "would never train. Set one of them to 0.",
    )
    fixed = "model.lora-rank" if model.lora_rank else "optim.freeze-backbone-epochs"
    value = model.lora_rank or optim.freeze_backbone_epochs
    require(
        not value or model.init != "scratch",
        f"{fixed} is {value} and model.init is scratch: the backbone would keep random weights. Name pretrained "
        f"weights with model.init, or set {fixed} to 0.",
    )
