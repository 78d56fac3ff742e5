"""Reader and writer of Hugging Face's AST format.

The format is a folder of `config.json`, `preprocessor_config.json` and `model.safetensors`. Its model,
`ASTForAudioClassification`, has separate weights for query, key and value; ours has one matrix for all three.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ast_core.config import AUDIOSET_MEAN, AUDIOSET_STD, FrontEndConfig, ModelConfig
from ast_core.errors import UserError, require
from ast_core.model.transformer import BACKBONES, NORM_EPS
from ast_core.serialization import from_dict
from ast_core.storage.disk_space import require_free_space
from ast_core.storage.json_files import read_json, write_json
from ast_core.storage.tensor_files import JSON_BYTES, bytes_of, load_tensors, require_plain, write_tensors
from ast_core.weights.bundle_description import require_labels

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
_PREFIX = "audio_spectrogram_transformer."
_NAMES = {  # our names to theirs, outside the blocks
    "cls_token": f"{_PREFIX}embeddings.cls_token",
    "dist_token": f"{_PREFIX}embeddings.distillation_token",
    "pos_embed": f"{_PREFIX}embeddings.position_embeddings",
    "patch_proj": f"{_PREFIX}embeddings.patch_embeddings.projection",
    "norm": f"{_PREFIX}layernorm",
    "head_norm": "classifier.layernorm",
    "head": "classifier.dense",
}
_IN_BLOCK = {  # our names to theirs, inside a block
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_SPLIT = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_NEWER = (  # transformers 5 uses these names in memory; the files on the hub have the older names
    (r"^audio_spectrogram_transformer\.layers\.", f"{_PREFIX}encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


@dataclass(frozen=True)
class HuggingFaceModel:
    """Content of a folder, in our configurations and names."""

    model: ModelConfig
    """Configuration of the model."""
    front_end: FrontEndConfig
    """Configuration of the front end."""
    mean: float
    """Mean of the training set's log-mel."""
    std: float
    """Standard deviation of the training set's log-mel."""
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    single_label: bool
    """Whether a clip has exactly one label."""
    weights: dict[str, torch.Tensor]
    """Tensors under our names."""


def is_folder(folder: Path) -> bool:
    """Return whether a folder is in this format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_folder(folder: Path) -> HuggingFaceModel:
    """Read a folder that `save_pretrained` wrote or that was downloaded from the hub.

    If `preprocessor_config.json` is missing, the settings of AudioSet are used.

    Raises:
        UserError: the model is not an AST, or no backbone here has its size.
    """
    config = _read_object(folder / CONFIG, "Hugging Face config")
    kind = config.get("model_type")
    require(
        kind == "audio-spectrogram-transformer",
        f"{folder / CONFIG} has model_type {ascii(kind)[:80]}, not 'audio-spectrogram-transformer'. "
        "Give the folder of an AST.",
    )
    preprocessor = folder / PREPROCESSOR
    extractor = _read_object(preprocessor, "Feature extractor") if preprocessor.is_file() else {}
    values = {
        "sample_rate_hz": extractor.get("sampling_rate", 16_000),
        "num_mel_bins": config.get("num_mel_bins", 128),
        "target_frames": config.get("max_length", 1024),
    }
    scale = from_dict(_Normalisation, {key: extractor[key] for key in ("mean", "std") if key in extractor})
    return HuggingFaceModel(
        model=_read_model_config(config, folder),
        front_end=from_dict(FrontEndConfig, values),
        mean=float(scale.mean),
        std=float(scale.std),
        labels=_read_labels(config.get("id2label"), folder / CONFIG),
        single_label=config.get("problem_type") == "single_label_classification",
        weights=read_weights(folder / WEIGHTS),
    )


@dataclass(frozen=True)
class _Normalisation:
    """Mean and standard deviation of the feature extractor; AudioSet's if its file does not have them."""

    mean: float = AUDIOSET_MEAN
    std: float = AUDIOSET_STD

    def __post_init__(self) -> None:
        require(self.std > 0, f"The feature extractor's std is {self.std}; it must be more than 0.")


def _read_object(path: Path, what: str) -> dict[str, Any]:
    values = read_json(path, what)
    require(isinstance(values, dict), f"{path} was refused: it is not a JSON object.")
    return dict(values)


def _read_labels(id2label: Any, path: Path) -> tuple[str, ...]:
    """Return the labels in the order of their numbers, which must be 0, 1, 2 and so on without a gap."""
    require(isinstance(id2label, dict), f"{path} was refused: id2label must be an object of label names by number.")
    count = len(id2label)
    labels = tuple(id2label.get(str(index)) for index in range(count))
    try:
        require_labels(labels)
    except UserError as error:
        raise UserError(
            f"{path} was refused: {error} id2label must hold a name for each number from 0 to {count - 1}."
        ) from None
    return labels


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a file in this format, under our names."""
    return from_names(require_plain(load_tensors(path), str(path)))


def from_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename Hugging Face's weights, of either generation, to our names; unknown names stay.

    Raises:
        UserError: a query has no key or value of the same shape.
    """
    theirs = {_older_name(key): value for key, value in weights.items()}
    ours = {their: own for own, their in _NAMES.items()} | {their: own for own, their in _IN_BLOCK.items()}
    own: dict[str, torch.Tensor] = {}
    for key, value in theirs.items():
        match = re.fullmatch(rf"{re.escape(_PREFIX)}encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            stem, _, last = key.rpartition(".")
            own[ours[key] if key in ours else f"{ours[stem]}.{last}" if stem in ours else key] = value
        elif match[2] in ours:
            own[f"blocks.{match[1]}.{ours[match[2]]}.{match[3]}"] = value
        elif match[2] == _SPLIT[0]:
            start, end = key.split(_SPLIT[0])
            parts = [theirs.get(f"{start}{name}{end}") for name in _SPLIT]
            found = [part for part in parts if part is not None]
            fit = len(found) == len(parts) and found[0].ndim and all(part.shape == found[0].shape for part in found)
            require(bool(fit), f"The weights have no key or value of the same shape as the query {key}.")
            own[f"blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat(found)
        elif match[2] not in _SPLIT:
            own[key] = value
    return own


def to_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename our weights to the names on Hugging Face's hub, which every version of transformers reads."""
    theirs: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            stem, _, last = key.rpartition(".")
            theirs[_NAMES[key] if key in _NAMES else f"{_NAMES[stem]}.{last}"] = value
            continue
        layer = f"{_PREFIX}encoder.layer.{match[1]}."
        if match[2] == "attn.qkv":
            for name, part in zip(_SPLIT, value.chunk(3), strict=True):
                theirs[f"{layer}{name}.{match[3]}"] = part
        else:
            theirs[f"{layer}{_IN_BLOCK[match[2]]}.{match[3]}"] = value
    return theirs


def find_export_obstacle(model: ModelConfig, front_end: FrontEndConfig) -> str:
    """Return why this format cannot hold a model, "" if it can.

    `ASTConfig` has one patch size and always two prefix tokens, its attention has no mask, and `ASTFeatureExtractor`
    has a fixed window.
    """
    window = (front_end.frame_length_ms, front_end.frame_shift_ms)
    own = FrontEndConfig()
    limits = {
        f"its patches are {model.patch_freq} x {model.patch_time}, not square": model.patch_freq != model.patch_time,
        f"its backbone {model.backbone} has one prefix token, not two": not BACKBONES[model.backbone].distilled,
        "it keeps padding out of attention (model.mask-padding)": model.mask_padding,
        f"its window is {front_end.window}, not hanning": front_end.window != "hanning",
        f"its windows are {window[0]:g} ms every {window[1]:g} ms, not 25 ms every 10 ms": window
        != (own.frame_length_ms, own.frame_shift_ms),
    }
    return ", and ".join(limit for limit, is_broken in limits.items() if is_broken)


def write_folder(folder: Path, source: HuggingFaceModel) -> None:
    """Write a folder that `ASTForAudioClassification` and `ASTFeatureExtractor` open.

    Raises:
        UserError: the format cannot hold the model, as `find_export_obstacle` says.
    """
    reason = find_export_obstacle(source.model, source.front_end)
    require(not reason, f"Hugging Face's format cannot hold this model: {reason}.")
    tensors = {key: value.contiguous().clone() for key, value in to_names(source.weights).items()}
    require_free_space(folder / WEIGHTS, bytes_of(tensors) + JSON_BYTES)
    write_tensors(folder / WEIGHTS, tensors, metadata={"format": "pt"})
    write_json(folder / PREPROCESSOR, _build_preprocessor_config(source))
    write_json(folder / CONFIG, _build_config(source))


def _build_config(source: HuggingFaceModel) -> dict[str, Any]:
    size = BACKBONES[source.model.backbone]
    return {
        "architectures": ["ASTForAudioClassification"],
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": size.embed_dim,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": 4 * size.embed_dim,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "layer_norm_eps": NORM_EPS,
        "patch_size": source.model.patch_freq,
        "frequency_stride": source.model.freq_stride,
        "time_stride": source.model.time_stride,
        "max_length": source.front_end.target_frames,
        "num_mel_bins": source.front_end.num_mel_bins,
        "id2label": {str(index): label for index, label in enumerate(source.labels)},
        "label2id": {label: index for index, label in enumerate(source.labels)},
        "problem_type": "single_label_classification" if source.single_label else "multi_label_classification",
    }


def _build_preprocessor_config(source: HuggingFaceModel) -> dict[str, Any]:
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": source.front_end.sample_rate_hz,
        "num_mel_bins": source.front_end.num_mel_bins,
        "max_length": source.front_end.target_frames,
        "mean": source.mean,
        "std": source.std,
        "do_normalize": True,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _read_model_config(config: dict[str, Any], folder: Path) -> ModelConfig:
    """Return the configuration of the backbone that has the folder's size.

    Transformers leaves a key out of `config.json` if its value is that of the base model.
    """
    size = tuple(
        config.get(key, default)
        for key, default in (("hidden_size", 768), ("num_hidden_layers", 12), ("num_attention_heads", 12))
    )
    fitting = [
        name
        for name, own in BACKBONES.items()
        if own.distilled and (own.embed_dim, own.depth, own.heads) == size
        and config.get("intermediate_size", 3072) == 4 * own.embed_dim
    ]  # fmt: skip
    known = ", ".join(f"{own.embed_dim} x {own.depth} x {own.heads}" for own in BACKBONES.values() if own.distilled)
    require(
        bool(fitting),
        f"{folder} has width, depth and heads {ascii(size)[:80]}; no backbone here has this size. Use one of {known}.",
    )
    patch = config.get("patch_size", 16)
    values = {
        "backbone": fitting[-1],
        "patch_freq": patch,
        "patch_time": patch,
        "freq_stride": config.get("frequency_stride", 10),
        "time_stride": config.get("time_stride", 10),
        "init": "scratch",
    }
    return from_dict(ModelConfig, values)


def _older_name(key: str) -> str:
    """Return the name on the hub of a weight that transformers 5 named."""
    for pattern, name in _NEWER:
        key = re.sub(pattern, name, key)
    return key
