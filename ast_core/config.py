"""Settings of data, model and training, as frozen dataclasses with units in names.

The defaults are the paper's for AudioSet. Each attribute's docstring is the help text of its command-line flag.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ast_core.errors import require

Layout = Literal["auto", "audioset", "esc50", "speech_commands", "folders", "manifest", "parquet", "webdataset"]
Window = Literal["hanning", "hamming"]
Loss = Literal["bce", "cross_entropy"]
Sampler = Literal["shuffle", "balanced"]
Precision = Literal["fp32", "bf16", "fp16"]
Weights = Literal["averaged", "last", "best", "ema"]
Positions = Literal["bilinear", "nearest", "reinitialised"]
Projection = Literal["sum", "mean"]
PrepareDevice = Literal["auto", "cpu", "cuda"]


AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Log-mel mean and standard deviation of AudioSet in the published code, which computed them with augmentation on."""
LONGEST_WINDOW = 1 << 16
"""Longest analysis window in samples: 0.09 s at the highest accepted rate, 4 s at 16 kHz."""
HIGHEST_RATE_HZ = 768_000
"""Highest accepted sampling rate."""
LEAST_FRAMES = 16
"""Fewest frames of an input."""
MOST_MEL_BINS, MOST_FRAMES = 1024, 100_000
"""Largest accepted spectrogram. No recording needs more; an untrusted bundle could ask for all memory."""


@dataclass(frozen=True)
class FrontEndConfig:
    """Settings of the front end, which turns a waveform into Kaldi's log-mel filterbank."""

    sample_rate_hz: int = 16_000
    """Sampling rate that every recording is resampled to."""
    num_mel_bins: int = 128
    """Number of mel channels of the filterbank."""
    frame_length_ms: float = 25.0
    """Length of the analysis window."""
    frame_shift_ms: float = 10.0
    """Distance between the starts of two frames."""
    window: Window = "hanning"
    """Shape of the analysis window: `hanning` as in the published checkpoints; the paper's text says `hamming`."""
    target_frames: int = 1024
    """Number of frames that each clip is padded or cut to: AudioSet 1024, ESC-50 512, Speech Commands 128."""

    def __post_init__(self) -> None:
        """Check ranges."""
        rate = self.sample_rate_hz
        require(1000 <= rate <= HIGHEST_RATE_HZ, f"front-end.sample-rate-hz is {rate}; give 1000 to {HIGHEST_RATE_HZ}.")
        require(self.num_mel_bins >= 4, f"front-end.num-mel-bins is {self.num_mel_bins}; give 4 or more.")
        require(
            self.target_frames >= LEAST_FRAMES,
            f"front-end.target-frames is {self.target_frames}; give {LEAST_FRAMES} or more.",
        )
        require(
            self.num_mel_bins <= MOST_MEL_BINS, f"front-end.num-mel-bins is {self.num_mel_bins}; give 1024 or less."
        )
        require(
            self.target_frames <= MOST_FRAMES, f"front-end.target-frames is {self.target_frames}; give 100000 or less."
        )
        require(
            0 < self.frame_shift_ms <= self.frame_length_ms,
            f"front-end.frame-shift-ms is {self.frame_shift_ms}; give more than 0 and at most "
            f"front-end.frame-length-ms ({self.frame_length_ms}).",
        )
        window = rate * self.frame_length_ms / 1000
        require(
            window <= LONGEST_WINDOW,
            f"front-end.frame-length-ms is {self.frame_length_ms}; give {1000 * LONGEST_WINDOW / rate:.0f} or less at "
            f"{rate} Hz.",
        )

    @property
    def clip_s(self) -> float:
        """Seconds of a clip of the training length, from its first to its last sample."""
        return ((self.target_frames - 1) * self.frame_shift_ms + self.frame_length_ms) / 1000


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data set: where it is, and which splits train, validate and test."""

    source: str = ""
    """Folder of the data set, a manifest file (CSV, JSON or Parquet), or a file, folder or glob of Parquet files or tar
    archives that hold the recordings; also as a URI such as s3://bucket/folder."""
    layout: Layout = "auto"
    """Layout of the source; `auto` detects it."""
    root: tuple[str, ...] = ()
    """Further folders in which the files of a list, or the targets of links, may lie. Repeat the flag for several."""
    follow_links: bool = False
    """Permission to follow links out of the source. Allow it only for lists and folders that you trust."""
    train_splits: tuple[str, ...] = ("train",)
    """Names of the training splits, joined in this order."""
    validation_split: str = ""
    """Name of the split that chooses the best epoch; leave it empty to choose none."""
    test_split: str = "test"
    """Name of the split whose results are reported."""
    group: str = ""
    """Column of the manifest, or regular expression with one group that is searched in file names (in paths, if it has
    a '/'), that names a clip's speaker, site or source recording. Clips of one group are never in two splits."""
    label_column: str = ""
    """Column of the labels in Parquet files; leave it empty to find it by its name."""
    audio_column: str = ""
    """Column of the recordings in Parquet files; leave it empty to find it by its type."""
    split_column: str = ""
    """Column of the splits in Parquet files; leave it empty to use a column `split`, else the names of folders and
    files."""
    label_names: str = ""
    """CSV file with the columns mid and display_name, such as AudioSet's class_labels_indices.csv. It fixes the names
    and the order of all classes, also of those without a clip."""
    mean: float | None = None
    """Log-mel mean for normalisation; the default is computed from the training splits."""
    std: float | None = None
    """Log-mel standard deviation for normalisation, `(x - mean) / (2 std)`; the default is computed from the training
    splits."""

    def __post_init__(self) -> None:
        """Check that mean and standard deviation are given together."""
        require(
            (self.mean is None) == (self.std is None),
            f"data.mean is {self.mean} and data.std is {self.std}; give both or neither.",
        )
        require(self.std is None or self.std > 0, f"data.std is {self.std}; give more than 0.")
        require(bool(self.train_splits), "data.train-splits is empty; name at least one split.")


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `prepare`, which writes the shards."""

    clips_per_part: int = 512
    """Number of listed clips for each Parquet part. A row group of a source in Parquet is not cut, so parts of such a
    source may have fewer clips, and a larger row group is a part of its own."""
    max_reject_share: float = 0.01
    """Largest share of the clips with audio that may be rejected; above it, the stage fails."""
    max_missing_share: float = 0.5
    """Largest share of the listed clips that may have no file, of the training splits together and of each other split
    that is used; above it, the stage fails before it decodes anything."""
    decode_limit_s: float = 120.0
    """Seconds to wait for the decoder's next block; a clip that exceeds this twice is rejected."""
    device: PrepareDevice = "cpu"
    """Device that computes the filterbanks. `cpu` makes the same bytes on every machine. `cuda` computes them on the
    GPUs of the Ray cluster while its CPUs decode; the bytes may differ from a CPU's in the last bit. `auto` uses GPUs
    if a node that is alive has one, and goes on with the device of the shards that exist."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.decode_limit_s > 0, f"prepare.decode-limit-s is {self.decode_limit_s}; give more than 0.")
        require(self.clips_per_part >= 1, f"prepare.clips-per-part is {self.clips_per_part}; give 1 or more.")
        for name, share in (("reject", self.max_reject_share), ("missing", self.max_missing_share)):
            require(0 <= share <= 1, f"prepare.max-{name}-share is {share}; give 0 to 1.")


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the transformer."""

    LATER_KEYS: ClassVar = frozenset({"lora_rank", "lora_alpha"})

    backbone: str = "deit_base_distilled_patch16_384"
    """Size of the transformer: a timm name, or `ast_micro` / `ast_mini`, which are small enough for a CPU and have no
    ImageNet weights."""
    patch_freq: int = 16
    """Height of a patch in mel bins."""
    patch_time: int = 16
    """Width of a patch in frames."""
    freq_stride: int = 10
    """Distance between patches in mel bins; 10 is the paper's overlap of 6."""
    time_stride: int = 10
    """Distance between patches in frames."""
    init: str = "imagenet"
    """Source of the first weights: `scratch`, `imagenet` (downloaded by timm), a model of Hugging Face's hub
    (`hf:ORG/NAME`), a file of ImageNet or AST weights (.pth, .safetensors), or a folder: a bundle, an epoch of a run,
    or a model in Hugging Face's format."""
    positions: Positions = "bilinear"
    """Method that resizes the positional embedding of a smaller grid; `reinitialised` draws a new embedding instead."""
    projection: Projection = "sum"
    """Method that turns ImageNet's RGB projection into one channel: `sum` as in the published code; the paper's text
    says `mean`."""
    mask_padding: bool = False
    """Switch that hides patches of padding from attention; the published model attends to them."""
    lora_rank: int = 0
    """Rank of the low-rank updates (LoRA) that train in the place of the backbone's own weights: two small matrices for
    each attention projection (qkv and proj). The head trains as usual. 0 turns LoRA off."""
    lora_alpha: float = 16.0
    """Scale of the low-rank updates: each is multiplied by `lora-alpha` / `lora-rank`."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.lora_rank >= 0, f"model.lora-rank is {self.lora_rank}; give 0 or more.")
        require(self.lora_alpha > 0, f"model.lora-alpha is {self.lora_alpha}; give more than 0.")
        sizes = (self.patch_freq, self.patch_time, self.freq_stride, self.time_stride)
        require(
            min(sizes) >= 1,
            f"model.patch-freq, patch-time, freq-stride and time-stride are {sizes}; give 1 or more for each.",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of the augmentation of training batches; the defaults are the AudioSet recipe's."""

    mixup_rate: float = 0.5
    """Share of training clips that are mixed with a random other clip."""
    mixup_alpha: float = 10.0
    """Parameter alpha of the distribution Beta(alpha, alpha) that the mixing weight is drawn from."""
    freq_mask_bins: int = 48
    """Largest width of the frequency mask in mel bins; 0 masks nothing."""
    time_mask_frames: int = 192
    """Largest width of the time mask in frames; 0 masks nothing."""
    noise: bool = False
    """Switch for Speech Commands' noise: add `rand * U(0, 1) / 10` after normalisation and roll by [-10, 10) frames."""
    patchout_freq: int = 0
    """Rows of patches dropped in training, drawn anew for each clip (structured patchout); PaSST-S drops 4 of 12."""
    patchout_time: int = 0
    """Columns of patches dropped in training; PaSST-S drops 40 of 99."""
    patchout_any: int = 0
    """Further patches dropped in training, at any place (unstructured patchout)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(0 <= self.mixup_rate <= 1, f"augment.mixup-rate is {self.mixup_rate}; give 0 to 1.")
        require(self.mixup_alpha > 0, f"augment.mixup-alpha is {self.mixup_alpha}; give more than 0.")
        dropped = (self.patchout_freq, self.patchout_time, self.patchout_any)
        require(
            min(dropped) >= 0,
            f"augment.patchout-freq, patchout-time and patchout-any are {dropped}; give 0 or more each.",
        )


@dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimiser, the sampler, and the choice of a run's final weights."""

    LATER_KEYS: ClassVar = frozenset(
        {"freeze_backbone_epochs", "head_learning_rate", "layer_decay", "early_stopping_epochs"}
    )

    epochs: int = 5
    """Number of passes over the data; with the balanced sampler, a pass draws as many clips as the data has."""
    batch_size: int = 12
    """Number of clips in a training step, over all workers."""
    learning_rate: float = 1e-5
    """Learning rate of Adam after warm-up."""
    warmup_steps: int = 1000
    """Number of steps of the linear warm-up."""
    decay_first_epoch: int = 2
    """Epoch after which the learning rate is first multiplied by `decay-factor`; 0 keeps the rate constant."""
    decay_every_epochs: int = 1
    """Number of epochs between two multiplications."""
    decay_factor: float = 0.5
    """Factor that each decay multiplies the learning rate by."""
    weight_decay: float = 5e-7
    """Weight of Adam's L2 term."""
    loss: Loss = "bce"
    """Training loss: binary cross-entropy (several labels a clip) or cross-entropy (one label a clip)."""
    sampler: Sampler = "balanced"
    """Order of the training clips: `shuffle`, or `balanced` (class-balanced draws with replacement)."""
    precision: Precision = "fp32"
    """Number format of the forward pass (autocast); fp16 also scales the loss."""
    weights: Weights = "averaged"
    """Final weights of a run: the mean of its epochs, the last epoch, the best epoch on the validation split, or the
    exponential moving average."""
    average_first_epoch: int = 1
    """First epoch that `averaged` includes."""
    checkpoint_every_steps: int = 1000
    """Number of steps between two checkpoints; each epoch also ends with one."""
    accumulate: int = 1
    """Number of parts that a worker computes its share of a batch in, one after another: less memory, same gradient."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 turns clipping off, as published."""
    ema_decay: float = 0.0
    """Decay per step of the exponential moving average of the weights; 0 turns it off."""
    activation_checkpointing: bool = False
    """Switch that computes each block's activations again in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Switch for torch.compile on the blocks: the start takes minutes longer, steps on a GPU are faster."""
    freeze_backbone_epochs: int = 0
    """Number of first epochs in which only the head trains; -1 freezes the backbone throughout."""
    head_learning_rate: float = 0.0
    """Learning rate of the head after warm-up; it follows the same schedule. 0 gives the head the common rate."""
    layer_decay: float = 1.0
    """Factor between the learning rates of a block and of the block after it, so that early blocks, which hold the most
    general features, change least. The head has the complete rate, the last block this factor of it; 1 turns it off."""
    early_stopping_epochs: int = 0
    """Number of epochs without a better validation score after which the training ends; 0 turns it off."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.epochs >= 1, f"optim.epochs is {self.epochs}; give 1 or more.")
        require(self.batch_size >= 1, f"optim.batch-size is {self.batch_size}; give 1 or more.")
        require(self.learning_rate > 0, f"optim.learning-rate is {self.learning_rate}; give more than 0.")
        require(self.accumulate >= 1, f"optim.accumulate is {self.accumulate}; give 1 or more.")
        require(self.clip_norm >= 0, f"optim.clip-norm is {self.clip_norm}; give 0 or more.")
        require(0 <= self.ema_decay < 1, f"optim.ema-decay is {self.ema_decay}; give 0 to less than 1.")
        require(
            self.weights != "ema" or self.ema_decay > 0,
            "optim.weights is ema and optim.ema-decay is 0; give optim.ema-decay a value such as 0.999.",
        )
        frozen, patience = self.freeze_backbone_epochs, self.early_stopping_epochs
        require(frozen >= -1, f"optim.freeze-backbone-epochs is {frozen}; give 0 or more, or -1 for all epochs.")
        require(patience >= 0, f"optim.early-stopping-epochs is {patience}; give 0 or more.")
        head = self.head_learning_rate
        require(head >= 0, f"optim.head-learning-rate is {head}; give more than 0, or 0 for the common rate.")
        require(0 < self.layer_decay <= 1, f"optim.layer-decay is {self.layer_decay}; give more than 0 and at most 1.")
        require(self.decay_every_epochs >= 1, f"optim.decay-every-epochs is {self.decay_every_epochs}; give 1 or more.")
        require(
            self.checkpoint_every_steps >= 1,
            f"optim.checkpoint-every-steps is {self.checkpoint_every_steps}; give 1 or more.",
        )
        require(
            1 <= self.average_first_epoch <= self.epochs,
            f"optim.average-first-epoch is {self.average_first_epoch}; give 1 to optim.epochs ({self.epochs}).",
        )


WAYS_IN = ("init", "positions", "projection", "lora_rank", "lora_alpha")
"""Keys of the model's config that say where its first weights came from and how they are trained. They do not change
what the weights mean: LoRA's updates are merged into the weights of each epoch."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Settings of an ensemble: one training run for each seed."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the members; the paper's Ensemble-S has three."""
    epochs: bool = False
    """Switch for one more bundle a member, which predicts the mean of its epochs (0.4647 in the published log, where
    the averaged weights have 0.4590)."""

    def __post_init__(self) -> None:
        """Check that the seeds differ."""
        require(bool(self.seeds), "ensemble.seeds is empty; give at least one seed.")
        require(
            len(set(self.seeds)) == len(self.seeds),
            f"ensemble.seeds {self.seeds} repeats a seed; give different seeds.",
        )


@dataclass(frozen=True)
class DistilConfig:
    """Settings of distillation: training on a teacher's probabilities as well as on the labels."""

    teacher: str = ""
    """Bundle folder or registry URI of the teacher; leave it empty to train without one. The teacher may differ in
    size, patches and strides, but must have the same labels and front end."""
    weight: float = 0.5
    """Share of the teacher's probabilities in the targets; the rest are the labels."""

    def __post_init__(self) -> None:
        """Check the range."""
        require(0 <= self.weight <= 1, f"distil.weight is {self.weight}; give 0 to 1.")


@dataclass(frozen=True)
class Job:
    """The training of one member: everything that decides its weights, and where they go."""

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
    """File of the teacher's probabilities of the training clips, as `ast_core.evaluation.stored_scores` writes it."""
    accept_other_data: bool = False
    """Permission to continue a run that began on other data with the same number of training clips."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a result: the sections of a TOML recipe."""

    data: DataConfig = field(default_factory=DataConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
