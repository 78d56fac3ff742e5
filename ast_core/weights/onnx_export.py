"""Export of a bundle as one ONNX graph from waveform to probabilities, front end included.

Removing a frame's mean, pre-emphasis, the window and the Fourier transform are all linear. The front end therefore is
one strided convolution, squares, a mel matrix and a logarithm: operators that every runtime has.

Shapes: B clips, N samples, T frames, F frequencies, M mel bins, C classes, K patches in time,
E embedding.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ast_core.audio.fbank import FLOOR, PREEMPHASIS, Fbank, mel_bank
from ast_core.config import FrontEndConfig
from ast_core.errors import UserError
from ast_core.model.loss import probabilities
from ast_core.storage.atomic_files import atomic_write
from ast_core.weights.bundle import Bundle
from ast_core.weights.ensemble_mean import Member


class LinearFrontEnd(nn.Module):
    """Log-mel filterbank of the training length from convolutions; equals `Fbank` to rounding.

    Args:
        config: settings of the front end.
    """

    kernel: torch.Tensor
    """Convolution kernel of the linear steps, [2F, 1, window]: real parts, then imaginary parts."""
    bank_MF: torch.Tensor
    """Mel matrix."""

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        fbank = Fbank(config)
        self.hop_samples, self.target_frames = fbank.hop_samples, config.target_frames
        size, n_fft = fbank.window_samples, fbank.n_fft
        window_W = fbank.window.double()
        identity_WW = torch.eye(size, dtype=torch.float64)
        centred_WW = identity_WW - 1 / size
        before_WW = torch.roll(centred_WW, 1, 0)
        before_WW[0] = centred_WW[0]  # the first sample has itself as predecessor, as in Kaldi
        frames_WW = window_W[:, None] * (centred_WW - PREEMPHASIS * before_WW)
        spectrum_FW = torch.fft.rfft(frames_WW, n_fft, dim=0)[: n_fft // 2]
        kernel = torch.cat([spectrum_FW.real, spectrum_FW.imag])[:, None].float()
        self.register_buffer("kernel", kernel, persistent=False)
        self.register_buffer("bank_MF", mel_bank(config), persistent=False)

    def forward(self, waveform_BN: torch.Tensor) -> torch.Tensor:
        """Convert waveforms [B, N] to log-mel [B, target frames, M]; N is at least one window."""
        centred_B1N = (waveform_BN - waveform_BN.mean(dim=1, keepdim=True))[:, None]
        real_BFT, imag_BFT = functional.conv1d(centred_B1N, self.kernel, stride=self.hop_samples).chunk(2, dim=1)
        mel_BMT = self.bank_MF @ (real_BFT.square() + imag_BFT.square())
        fbank_BTM = mel_BMT.clamp_min(FLOOR).log().transpose(1, 2)
        padding_BTM = fbank_BTM.new_zeros(1, 1, 1).expand(fbank_BTM.shape[0], self.target_frames, fbank_BTM.shape[2])
        return torch.cat([fbank_BTM, padding_BTM], dim=1)[:, : self.target_frames]


class OnnxBundle(nn.Module):
    """Module from waveforms of up to the training length to the mean of the members' probabilities.

    Args:
        bundle: bundle whose models are used without a copy.
        embeddings: whether to return each member's embeddings, too.
    """

    def __init__(self, bundle: Bundle, embeddings: bool = False) -> None:
        super().__init__()
        self.members: tuple[Member, ...] = bundle.members
        self.embeddings = embeddings
        self.front_ends = nn.ModuleList(LinearFrontEnd(member.front_end) for member in bundle.members)
        self.models = nn.ModuleList(member.model for member in bundle.members)

    def forward(self, waveform_BN: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Convert waveforms [B, N] at the bundle's rate; cut audio past the training length.

        Returns:
            Probabilities [B, C]; with `embeddings` also the clip embeddings [B, E] and the frame embeddings [B, K, E]
            of each member, in the order of `name_outputs`.
        """
        scores, embeddings = [], []
        for member, front_end in zip(self.members, self.front_ends, strict=True):
            model = member.model
            fbank_BTM = (front_end(waveform_BN) - member.mean) / (2 * member.std)
            if self.embeddings:
                found = model.embed(fbank_BTM)
                embeddings += [found.clip_BE, found.frames_BKE]
                logits_BC = model.head(model.head_norm(found.clip_BE))
            else:
                logits_BC = model(fbank_BTM)
            scores.append(probabilities(member.loss, logits_BC))  # type: ignore[arg-type]
        return torch.stack(scores).mean(dim=0), *embeddings


def name_outputs(bundle: Bundle, embeddings: bool) -> list[str]:
    """Return the names of the graph's outputs; those of an ensemble's embeddings end with the member's number."""
    ends = [""] if len(bundle.members) == 1 else [f"_{number}" for number in range(len(bundle.members))]
    names = [f"{name}{end}" for end in ends for name in ("embedding", "frame_embeddings")]
    return ["probabilities", *(names if embeddings else [])]


def export_onnx(bundle: Bundle, path: Path, embeddings: bool = False) -> None:
    """Write a bundle as ONNX: input `waveform` float32 [clips, samples], output `probabilities` [clips, classes].

    Args:
        bundle: bundle to write.
        path: file to write to.
        embeddings: whether the graph has further outputs: `embedding` [clips, E], the clip embedding of the last
            block, and `frame_embeddings` [clips, patches in time, E]. Those of an ensemble's members are `embedding_0`,
            `frame_embeddings_0` and so on.

    Raises:
        UserError: the `onnx` extra is not installed, or a member masks padding, whose length is no input of the graph.
    """
    masking = [member.name for member in bundle.members if member.model.mask_padding]
    if masking:
        raise UserError(
            f"{', '.join(masking)} has model.mask-padding, which needs each clip's length, and the ONNX graph has no "
            "such input. Train with model.mask-padding off, or export to another format."
        )
    module = OnnxBundle(bundle, embeddings).eval()
    rate, longest = bundle.front_end.sample_rate_hz, bundle.front_end.target_frames
    seconds = longest * bundle.front_end.frame_shift_ms / 1000
    example_BN = torch.zeros(2, int(rate * seconds))
    dynamic = {0: torch.export.Dim("clips", min=1), 1: torch.export.Dim("samples", min=rate // 20)}
    try:
        import onnxscript  # noqa: F401, PLC0415, an extra
    except ImportError:
        raise UserError("Export to ONNX needs an extra: run pip install 'ast-pipeline[onnx]'.") from None
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about functions that torch itself calls
        torch.onnx.export(
            module, (example_BN,), str(temporary), dynamo=True, dynamic_shapes=(dynamic,), external_data=False,
            input_names=["waveform"], output_names=name_outputs(bundle, embeddings), verbose=False, opset_version=18,
        )  # fmt: skip
