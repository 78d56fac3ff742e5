"""The Audio Spectrogram Transformer in Python: recordings, features, models, predictions, metrics.

    import ast_core

    model = ast_core.load("work/demo/bundles/ensemble")
    model.predict("rain.wav")  # {"rain": 0.93, "wind": 0.04, ...}

Every name below is imported when it is first used, so `import ast_core` alone loads no torch, numpy or pyarrow. What is
not listed here is internal and may change between releases.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ast_core.audio.decoder import Decoder, Recording
    from ast_core.audio.fbank import Fbank
    from ast_core.audio.waveform import load_waveform, resample
    from ast_core.config import (
        AugmentConfig,
        DataConfig,
        DistilConfig,
        EnsembleConfig,
        FrontEndConfig,
        Job,
        ModelConfig,
        OptimConfig,
        PrepareConfig,
        Recipe,
    )
    from ast_core.dataset.clips import Clip, Manifest
    from ast_core.dataset.manifest import load_manifest
    from ast_core.errors import ClipError, DamagedError, UserError
    from ast_core.evaluation.audio_tagger import AudioTagger, Timeline
    from ast_core.evaluation.bootstrap import bootstrap_intervals
    from ast_core.evaluation.embedder import Embedding
    from ast_core.evaluation.events import Event
    from ast_core.evaluation.metrics import evaluate_scores
    from ast_core.evaluation.predictor import Predictor
    from ast_core.loading import load
    from ast_core.model.cost import model_cost
    from ast_core.model.transformer import AST
    from ast_core.shards.index import ShardIndex
    from ast_core.shards.reader import ShardReader
    from ast_core.shards.torch_dataset import ShardDataset
    from ast_core.training.callback import TrainerCallback
    from ast_core.training.trainer import fit
    from ast_core.weights.bundle import Bundle
    from ast_core.weights.onnx_export import export_onnx

__all__ = [
    "AST",
    "AudioTagger",
    "AugmentConfig",
    "Bundle",
    "Clip",
    "ClipError",
    "DamagedError",
    "DataConfig",
    "Decoder",
    "DistilConfig",
    "Embedding",
    "EnsembleConfig",
    "Event",
    "Fbank",
    "FrontEndConfig",
    "Job",
    "Manifest",
    "ModelConfig",
    "OptimConfig",
    "Predictor",
    "PrepareConfig",
    "Recipe",
    "Recording",
    "ShardDataset",
    "ShardIndex",
    "ShardReader",
    "Timeline",
    "TrainerCallback",
    "UserError",
    "bootstrap_intervals",
    "evaluate_scores",
    "export_onnx",
    "fit",
    "load",
    "load_manifest",
    "load_waveform",
    "model_cost",
    "resample",
]

_MODULES = {
    "AST": "model.transformer",
    "AudioTagger": "evaluation.audio_tagger",
    "AugmentConfig": "config",
    "Bundle": "weights.bundle",
    "Clip": "dataset.clips",
    "ClipError": "errors",
    "DamagedError": "errors",
    "DataConfig": "config",
    "Decoder": "audio.decoder",
    "DistilConfig": "config",
    "Embedding": "evaluation.embedder",
    "EnsembleConfig": "config",
    "Event": "evaluation.events",
    "Fbank": "audio.fbank",
    "FrontEndConfig": "config",
    "Job": "config",
    "Manifest": "dataset.clips",
    "ModelConfig": "config",
    "OptimConfig": "config",
    "Predictor": "evaluation.predictor",
    "PrepareConfig": "config",
    "Recipe": "config",
    "Recording": "audio.decoder",
    "ShardDataset": "shards.torch_dataset",
    "ShardIndex": "shards.index",
    "ShardReader": "shards.reader",
    "Timeline": "evaluation.audio_tagger",
    "TrainerCallback": "training.callback",
    "UserError": "errors",
    "bootstrap_intervals": "evaluation.bootstrap",
    "evaluate_scores": "evaluation.metrics",
    "export_onnx": "weights.onnx_export",
    "fit": "training.trainer",
    "load": "loading",
    "load_manifest": "dataset.manifest",
    "load_waveform": "audio.waveform",
    "model_cost": "model.cost",
    "resample": "audio.waveform",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ast_core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ast_core.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
