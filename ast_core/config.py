"""Every setting of the science, as frozen dataclasses with units in names. Defaults are the paper's for AudioSet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ast_core.errors import require

Layout = Literal["auto", "audioset", "esc50", "speech_commands", "folders", "manifest"]
Window = Literal["hanning", "hamming"]
Loss = Literal["bce", "cross_entropy"]
Sampler = Literal["shuffle", "balanced"]
Precision = Literal["fp32", "bf16", "fp16"]
Weights = Literal["averaged", "last", "best", "ema"]
Positions = Literal["bilinear", "nearest", "reinitialised"]
Projection = Literal["sum", "mean"]


LONGEST_WINDOW = 1 << 16
"""Samples: 0.3 s at the highest rate that is accepted, 4 s at 16 kHz."""
HIGHEST_RATE_HZ = 768_000
MOST_MEL_BINS, MOST_FRAMES = 1024, 100_000
"""Beyond these no sound is; a stranger's bundle that says more wants memory."""


@dataclass(frozen=True)
class FrontEndConfig:
    """Waveform to log-mel filterbank (Kaldi's), and its normalisation."""

    sample_rate_hz: int = 16_000
    """Rate that every recording is resampled to."""
    num_mel_bins: int = 128
    """Mel channels of the filterbank."""
    frame_length_ms: float = 25.0
    """Analysis window."""
    frame_shift_ms: float = 10.0
    """Hop between frames."""
    window: Window = "hanning"
    """`hanning` as in the published checkpoints; the paper's text says `hamming`."""
    target_frames: int = 1024
    """Frames a clip is padded or cut to: AudioSet 1024, ESC-50 512, Speech Commands 128."""

    def __post_init__(self) -> None:
        """Check what has no meaning otherwise."""
        rate = self.sample_rate_hz
        require(1000 <= rate <= HIGHEST_RATE_HZ, f"front-end.sample-rate-hz is {rate}; give 1000 to {HIGHEST_RATE_HZ}.")
        require(self.num_mel_bins >= 4, f"front-end.num-mel-bins is {self.num_mel_bins}; give 4 or more.")
        require(self.target_frames >= 16, f"front-end.target-frames is {self.target_frames}; give 16 or more.")
        require(self.num_mel_bins <= MOST_MEL_BINS, f"front-end.num-mel-bins is {self.num_mel_bins}; 1024 at most.")
        require(self.target_frames <= MOST_FRAMES, f"front-end.target-frames is {self.target_frames}; 100000 at most.")
        require(
            0 < self.frame_shift_ms <= self.frame_length_ms,
            f"front-end.frame-shift-ms is {self.frame_shift_ms}; give more than 0, at most frame-length-ms.",
        )
        window = rate * self.frame_length_ms / 1000
        require(window <= LONGEST_WINDOW, f"front-end.frame-length-ms is {self.frame_length_ms}; give less.")


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and which of its splits train, choose and test."""

    source: str = ""
    """Folder of the data set, or a CSV, JSON or Parquet manifest."""
    layout: Layout = "auto"
    """How the source is laid out; `auto` recognises it."""
    train_splits: tuple[str, ...] = ("train",)
    """Splits to train on, joined in this order."""
    validation_split: str = ""
    """Split that chooses the best epoch; empty for none."""
    test_split: str = "test"
    """Split that is reported."""
    mean: float | None = None
    """Log-mel mean to normalise with; none for the training splits' own."""
    std: float | None = None
    """Log-mel standard deviation to normalise with, `(x - mean) / (2 std)`; none for the training splits' own."""

    def __post_init__(self) -> None:
        """Check that statistics come in a pair."""
        require((self.mean is None) == (self.std is None), "data.mean and data.std go together: give both or neither.")
        require(self.std is None or self.std > 0, f"data.std is {self.std}; give more than 0.")
        require(bool(self.train_splits), "data.train-splits is empty; name at least one split.")


@dataclass(frozen=True)
class PrepareConfig:
    """How the shards are written."""

    clips_per_part: int = 512
    """Listed clips a Parquet part is made from."""
    max_reject_share: float = 0.01
    """Share of clips with audio that may be rejected before the stage fails."""
    decode_limit_s: float = 120.0
    """Seconds that a decoder may be silent over a clip, twice, before the clip is rejected."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.decode_limit_s > 0, f"prepare.decode-limit-s is {self.decode_limit_s}; give more than 0.")
        require(self.clips_per_part >= 1, f"prepare.clips-per-part is {self.clips_per_part}; give 1 or more.")
        require(0 <= self.max_reject_share <= 1, f"prepare.max-reject-share is {self.max_reject_share}; give 0 to 1.")


@dataclass(frozen=True)
class ModelConfig:
    """The transformer."""

    backbone: str = "deit_base_distilled_patch16_384"
    """timm's name, or `ast_micro` / `ast_mini`: sizes of our own for a CPU, without ImageNet weights."""
    patch_freq: int = 16
    """Patch height in mel bins."""
    patch_time: int = 16
    """Patch width in frames."""
    freq_stride: int = 10
    """Stride over mel bins; 10 is the paper's overlap of 6."""
    time_stride: int = 10
    """Stride over frames."""
    init: str = "imagenet"
    """`scratch`, `imagenet` (timm's hub), a file of ImageNet or AST weights (.pth, .safetensors), or a folder: a
    bundle, an epoch of a run, or Hugging Face's format."""
    positions: Positions = "bilinear"
    """How another grid's positional embedding is stretched where it is too small; `reinitialised` starts it anew."""
    projection: Projection = "sum"
    """ImageNet's RGB projection becomes one channel: `sum` as in the published code; the paper's text says `mean`."""
    mask_padding: bool = False
    """Keep patches that are all padding out of attention; the published model attends to them."""

    def __post_init__(self) -> None:
        """Check that strides and patches are positive."""
        sizes = (self.patch_freq, self.patch_time, self.freq_stride, self.time_stride)
        require(min(sizes) >= 1, f"model patch sizes and strides are {sizes}; give 1 or more each.")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training batches; every number from the AudioSet recipe."""

    mixup_rate: float = 0.5
    """Share of training clips that are mixed with a uniformly drawn partner."""
    mixup_alpha: float = 10.0
    """Lambda is drawn from Beta(alpha, alpha)."""
    freq_mask_bins: int = 48
    """Widest frequency mask; 0 for none."""
    time_mask_frames: int = 192
    """Widest time mask; 0 for none."""
    noise: bool = False
    """Add `rand * U(0, 1) / 10` after normalisation and roll in time by [-10, 10) frames (Speech Commands)."""
    patchout_freq: int = 0
    """Rows of patches left out of a training step, another choice a clip; PaSST-S has 4 of 12 (structured patchout)."""
    patchout_time: int = 0
    """Columns of patches left out; PaSST-S has 40 of 99."""
    patchout_any: int = 0
    """Further patches left out, wherever they are (unstructured patchout)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(0 <= self.mixup_rate <= 1, f"augment.mixup-rate is {self.mixup_rate}; give 0 to 1.")
        require(self.mixup_alpha > 0, f"augment.mixup-alpha is {self.mixup_alpha}; give more than 0.")
        left_out = (self.patchout_freq, self.patchout_time, self.patchout_any)
        require(min(left_out) >= 0, f"augment.patchout-* are {left_out}; give 0 or more each.")


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation, the sampler, and which weights stand for a run."""

    epochs: int = 5
    """Passes; with the balanced sampler a pass is as many draws as there are clips."""
    batch_size: int = 12
    """Clips a step over all workers."""
    learning_rate: float = 1e-5
    """Adam's, after warm-up."""
    warmup_steps: int = 1000
    """Linear warm-up."""
    decay_first_epoch: int = 2
    """After this epoch the rate is multiplied for the first time; 0 for never."""
    decay_every_epochs: int = 1
    """Then again after every so many epochs."""
    decay_factor: float = 0.5
    """Multiplier."""
    weight_decay: float = 5e-7
    """Adam's L2 term."""
    loss: Loss = "bce"
    """Binary cross-entropy (many labels a clip) or cross-entropy (one)."""
    sampler: Sampler = "balanced"
    """`shuffle`, or `balanced`: class-balanced draws with replacement."""
    precision: Precision = "fp32"
    """Autocast type of the forward pass; fp16 scales its loss."""
    weights: Weights = "averaged"
    """What stands for a run: the mean of epochs, its last epoch, the best on the validation split, or the exponential
    moving average."""
    average_first_epoch: int = 1
    """First epoch of the mean."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints inside an epoch; each epoch's end is one as well."""
    accumulate: int = 1
    """Parts that a worker's share of a batch is computed in, one after the other: less memory, the same gradient."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 for no clipping, as published."""
    ema_decay: float = 0.0
    """Decay a step of an exponential moving average of the weights; 0 for none."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile the blocks with torch.compile: minutes of start, faster steps on a GPU."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.epochs >= 1, f"optim.epochs is {self.epochs}; give 1 or more.")
        require(self.batch_size >= 1, f"optim.batch-size is {self.batch_size}; give 1 or more.")
        require(self.learning_rate > 0, f"optim.learning-rate is {self.learning_rate}; give more than 0.")
        require(self.accumulate >= 1, f"optim.accumulate is {self.accumulate}; give 1 or more.")
        require(self.clip_norm >= 0, f"optim.clip-norm is {self.clip_norm}; give 0 or more.")
        require(0 <= self.ema_decay < 1, f"optim.ema-decay is {self.ema_decay}; give 0 to less than 1.")
        require(
            self.weights != "ema" or self.ema_decay > 0, "optim.weights is ema; give optim.ema-decay, such as 0.999."
        )
        require(self.decay_every_epochs >= 1, "optim.decay-every-epochs must be 1 or more.")
        require(self.checkpoint_every_steps >= 1, "optim.checkpoint-every-steps must be 1 or more.")
        require(
            1 <= self.average_first_epoch <= self.epochs,
            f"optim.average-first-epoch is {self.average_first_epoch}; give 1 to optim.epochs ({self.epochs}).",
        )


WAYS_IN = ("init", "positions", "projection")
"""Keys of the model's config that say where its first weights came from: they change no meaning of its weights."""


@dataclass(frozen=True)
class EnsembleConfig:
    """The members of an ensemble: one training run a seed."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the members; three are the paper's Ensemble-S."""
    epochs: bool = False
    """Also a bundle of each member's epochs that predicts their mean (the published log's 0.4647 beside 0.4590)."""

    def __post_init__(self) -> None:
        """Check that members differ."""
        require(bool(self.seeds), "ensemble.seeds is empty; give at least one seed.")
        require(len(set(self.seeds)) == len(self.seeds), f"ensemble.seeds {self.seeds} has a seed twice.")


@dataclass(frozen=True)
class DistilConfig:
    """Learning from a teacher's probabilities beside the labels."""

    teacher: str = ""
    """A bundle folder or registry URI whose probabilities of the training clips are learned from; empty for none. It
    may differ in size, patches and strides, not in labels or front end."""
    weight: float = 0.5
    """Share of the teacher in the targets; the labels have the rest."""

    def __post_init__(self) -> None:
        """Check the range."""
        require(0 <= self.weight <= 1, f"distil.weight is {self.weight}; give 0 to 1.")


@dataclass(frozen=True)
class Job:
    """One member's training: all that decides its weights, and where they go."""

    folder: Path
    shards: Path
    seed: int
    data: DataConfig
    front_end: FrontEndConfig
    model: ModelConfig
    augment: AugmentConfig
    optim: OptimConfig
    distil: DistilConfig = field(default_factory=DistilConfig)
    teacher_scores: Path | None = None
    """The teacher's probabilities of the training clips, as `ast_core.evaluation.stored_scores` writes them."""
    accept_other_data: bool = False
    """Whether a run that began on other data of as many training clips may go on."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a result: what a TOML recipe holds, section by section."""

    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
