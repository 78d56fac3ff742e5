"""Compute Kaldi's log-mel filterbank for batches of waveforms, on CPU and GPU.

The values equal torchaudio's up to rounding; the computation is faster.

Shape suffixes: B clips, N samples, T frames, W samples a window, F frequencies, M mel bins.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torchaudio.compliance import kaldi

from ast_core.config import FrontEndConfig
from ast_core.errors import ClipError, require

PREEMPHASIS = 0.97
"""Coefficient of the pre-emphasis: Kaldi's default."""
LOW_HZ = 20.0
"""Lower edge of the mel bank: Kaldi's default. The upper edge is half the sampling rate."""
FLOOR = 1.1920929e-07
"""Smallest power that the logarithm sees: float32's epsilon, as in Kaldi."""
_CHUNK_FRAMES = 1000  # one 10 s clip: smaller chunks fit the cache, but their calls cost more (measured)
_BAND_MELS = 16  # mel bins in one matrix product, which then needs only the frequencies between the group's edges


class Fbank:
    """The filterbank `kaldi.fbank(x - x.mean(), htk_compat=True, use_energy=False, dither=0.0, ...)` for a batch."""

    def __init__(self, config: FrontEndConfig, device: torch.device | str = "cpu") -> None:
        """Build the window and the mel bank.

        Raises:
            UserError: at this rate, the window has fewer than two samples, or the hop less than one.
        """
        self.config = config
        self.device = torch.device(device)
        # These are torchaudio's own expressions, so that both round down to the same number at every rate.
        self.window_samples = int(config.sample_rate_hz * config.frame_length_ms * 0.001)
        self.hop_samples = int(config.sample_rate_hz * config.frame_shift_ms * 0.001)
        require(
            self.window_samples >= 2 and self.hop_samples >= 1,
            f"At {config.sample_rate_hz} Hz, front-end.frame-length-ms {config.frame_length_ms} is below two samples "
            f"or front-end.frame-shift-ms {config.frame_shift_ms} below one; give longer ones.",
        )
        self.n_fft = 1 << (self.window_samples - 1).bit_length()
        make_window = torch.hann_window if config.window == "hanning" else torch.hamming_window
        self.window = make_window(self.window_samples, periodic=False).to(self.device)
        self._bands = _split_bank(config, self.device)

    @property
    def clip_samples(self) -> int:
        """Samples of a clip of the training length."""
        return (self.config.target_frames - 1) * self.hop_samples + self.window_samples

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a clip: the windows that fit into it completely (Kaldi's snip edges)."""
        return max(0, 1 + (num_samples - self.window_samples) // self.hop_samples)

    @torch.no_grad()
    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """Compute the log-mel of a waveform, or of a batch of waveforms of the same length.

        Args:
            waveform: float32 [N] or [B, N], in [-1, 1]. The mean of each clip is subtracted first.

        Returns:
            float32 [T, M] or [B, T, M] on this object's device.

        Raises:
            ClipError: stage `fbank`; the clip is shorter than one window.
        """
        wave = waveform.to(self.device, torch.float32)
        wave_BN = wave if wave.dim() == 2 else wave[None]
        num_frames = self.num_frames(wave_BN.shape[1])
        if not num_frames:
            raise ClipError("fbank", f"{wave_BN.shape[1]} samples are less than one window of {self.window_samples}")
        # In double precision the mean does not depend on the number of threads; bins near silence would show it.
        wave_BN = wave_BN - wave_BN.mean(dim=1, keepdim=True, dtype=torch.float64).float()
        raw_BTW = wave_BN.unfold(1, self.window_samples, self.hop_samples)
        emphasised_BN = torch.empty_like(wave_BN)  # the first sample of each frame is written by `_window`
        torch.sub(wave_BN[:, 1:], wave_BN[:, :-1], alpha=PREEMPHASIS, out=emphasised_BN[:, 1:])
        emphasised_BTW = emphasised_BN.unfold(1, self.window_samples, self.hop_samples)
        out_BTM = wave_BN.new_empty(len(wave_BN), num_frames, self.config.num_mel_bins)
        clips, size = (len(wave_BN), num_frames) if self.device.type != "cpu" else (1, min(_CHUNK_FRAMES, num_frames))
        buffer_TW = wave_BN.new_zeros(clips * size, self.n_fft)
        for first in range(0, len(wave_BN), clips):
            for start in range(0, num_frames, size):
                part = (slice(first, first + clips), slice(start, min(start + size, num_frames)))
                padded_TW = buffer_TW[: clips * (part[1].stop - start)]
                self._window(raw_BTW[part], emphasised_BTW[part], padded_TW.view(clips, -1, self.n_fft))
                self._log_mel(padded_TW, out_BTM[part].flatten(0, 1))
        return out_BTM if waveform.dim() == 2 else out_BTM[0]

    def _window(self, raw_BTW: torch.Tensor, emphasised_BTW: torch.Tensor, padded_BTW: torch.Tensor) -> None:
        """Write DC-free, pre-emphasised, windowed frames into the front of `padded_BTW`.

        Kaldi subtracts each frame's mean m before the pre-emphasis, and takes a frame's first sample as its own
        predecessor. Since (x[i] - m) - c (x[i-1] - m) = (x[i] - c x[i-1]) - (1 - c) m, one pre-emphasis of the clip
        serves all its frames.
        """
        mean_BT1 = raw_BTW.mean(dim=2, keepdim=True)
        frames_BTW = padded_BTW[..., : self.window_samples]
        torch.sub(emphasised_BTW, mean_BT1, alpha=1 - PREEMPHASIS, out=frames_BTW)
        torch.sub(raw_BTW[..., :1], mean_BT1, out=frames_BTW[..., :1])
        frames_BTW[..., 0] *= 1 - PREEMPHASIS
        frames_BTW *= self.window

    def _log_mel(self, padded_TW: torch.Tensor, out_TM: torch.Tensor) -> None:
        """Write the log-mel of all frames in the chunk to `out_TM`: power spectrum, mel bank, logarithm."""
        # Squaring the contiguous pairs is faster than squaring each strided part.
        squares = torch.view_as_real(torch.fft.rfft(padded_TW)).square_()
        power_TF = squares[..., 0] + squares[..., 1]
        for mels, frequencies, bank_FM in self._bands:
            torch.mm(power_TF[:, frequencies], bank_FM, out=out_TM[:, mels])
        out_TM.clamp_min_(FLOOR).log_()


def fit_length(fbank_TM: torch.Tensor, target_frames: int) -> torch.Tensor:
    """Cut or pad [T, M] at its end to [target_frames, M]; the padding is 0 in raw log-mel, as published."""
    return functional.pad(fbank_TM[:target_frames], (0, 0, 0, max(0, target_frames - len(fbank_TM))))


def mel_bank(config: FrontEndConfig) -> torch.Tensor:
    """Return Kaldi's mel filters, float32 [M, n_fft / 2]."""
    size = int(config.sample_rate_hz * config.frame_length_ms * 0.001)
    rate, no_warp = float(config.sample_rate_hz), (100.0, -500.0, 1.0)
    bank_MF: torch.Tensor = kaldi.get_mel_banks(
        config.num_mel_bins, 1 << (size - 1).bit_length(), rate, LOW_HZ, 0.0, *no_warp
    )[0]
    return bank_MF


def _split_bank(config: FrontEndConfig, device: torch.device) -> list[tuple[slice, slice, torch.Tensor]]:
    """Split the mel bank into groups of neighbouring bins: the bins, their frequencies, and the weights [F, M].

    torchaudio's bank has n_fft / 2 columns. No bin has a weight at the Nyquist frequency, so no group includes it.
    """
    bank_MF = mel_bank(config)
    bands = []
    for start in range(0, config.num_mel_bins, _BAND_MELS):
        rows_MF = bank_MF[start : start + _BAND_MELS]
        used = rows_MF.any(dim=0).nonzero().flatten().tolist() or [0]
        frequencies = slice(used[0], used[-1] + 1)
        weights_FM = rows_MF[:, frequencies].T.contiguous().to(device)
        bands.append((slice(start, start + len(rows_MF)), frequencies, weights_FM))
    return bands
