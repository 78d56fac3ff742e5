"""Linear probe: logistic regression on the features of a frozen model, which becomes the head of that model.

One label a clip: multinomial logistic regression. Several labels: one logistic regression a class, all fitted at once.
The optimum is that of `sklearn.linear_model.LogisticRegression` with `C = 1 / (strength * N)` on standardised features;
the sums go over blocks of clips, so that two million clips need not be in memory.

Shapes: N clips, B clips of a block, E features, C classes, K classes that can be learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from ast_core.config import Loss
from ast_core.errors import require
from ast_core.shards.sparse_labels import SparseLabels

Floats = npt.NDArray[np.float64]
ReadRows = Callable[[np.ndarray], np.ndarray]
"""Function that returns the features of some clips, float [B, E], in the order of the given indices."""

BLOCK = 8192
"""Clips of a block: 50 MB of 768 features in float64."""
MOST_HELD_BYTES = 1 << 28
"""Standardised features up to this size stay in memory during a fit; larger ones are read again in each step."""
SMALLEST_SCALE = 1e-6
"""Standard deviation below which a feature counts as constant; it is then not scaled."""
CERTAIN = 1e4
"""Size of the logit of a class that no clip, or every clip, of the fit has: its probability is 0 or 1."""
MOST_STEPS = 1000
SHOWN = 5
"""Classes that an error names at most."""


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Features and labels of all clips of a data set."""

    read: ReadRows
    """Reader of the features."""
    labels: SparseLabels
    """Labels of the clips."""
    names: tuple[str, ...]
    """Names of the C classes."""
    single_label: bool
    """Whether a clip has exactly one label."""
    loss: Loss
    """Loss: `cross_entropy` for one label a clip, `bce` for several."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Weights and biases on features as they are: the standardisation of the fit is folded into them."""

    weight_CE: Floats
    bias_C: Floats
    loss: Loss

    def logits(self, features_BE: np.ndarray) -> Floats:
        """Return the logits of some clips, float64 [B, C]."""
        logits_BC: Floats = features_BE.astype(np.float64) @ self.weight_CE.T + self.bias_C
        return logits_BC

    def probabilities(self, features_BE: np.ndarray) -> npt.NDArray[np.float32]:
        """Return the probabilities of some clips, float32 [B, C]: softmax or sigmoid of the logits, by the loss."""
        logits_BC = self.logits(features_BE)
        if self.loss == "bce":
            return (0.5 + 0.5 * np.tanh(logits_BC / 2)).astype(np.float32)  # the sigmoid, without overflow
        return np.exp(_log_softmax(logits_BC)).astype(np.float32)

    def probabilities_of(self, read: ReadRows, rows_N: np.ndarray) -> npt.NDArray[np.float32]:
        """Return the probabilities of clips that are read in blocks, float32 [N, C]."""
        found = [self.probabilities(read(rows_B)) for rows_B in _blocks(rows_N)]
        return np.concatenate([np.empty((0, len(self.bias_C)), np.float32), *found])


def require_learnable(data: ProbeData, rows_N: np.ndarray, where: str) -> None:
    """Raise UserError unless every class can be learned from some clips.

    Args:
        data: labels and classes.
        rows_N: indices of the training clips.
        where: what the clips are, such as `The training splits train`.

    Raises:
        UserError: there is no clip; a clip has several labels or none although the loss needs exactly one; a class has
            no clip, or all clips.
    """
    require(len(rows_N) > 0, f"{where} have no usable clip; a probe needs clips of every class.")
    require(len(data.names) > 1, f"The data set has one class, {data.names[0]}; a probe needs two or more.")
    if data.loss == "cross_entropy":
        several = data.labels.count_N[rows_N] != 1
        require(
            not several.any(),
            f"{int(several.sum())} of {len(rows_N)} training clips have several labels or none, so they cannot be "
            "learned with cross_entropy; give --loss bce.",
        )
    count_C = np.zeros(len(data.names), np.int64)
    for rows_B in _blocks(rows_N):
        count_C += data.labels.rows(rows_B).sum(axis=0, dtype=np.int64)
    absent = np.flatnonzero(count_C == 0)
    require(
        not len(absent),
        f"{where} have no usable clip of {_name(data.names, absent)}; a probe cannot learn a class without clips. Add "
        "clips of it, or take the class out of the data set.",
    )
    everywhere = np.flatnonzero(count_C == len(rows_N))
    require(
        not len(everywhere),
        f"Every usable clip of {where[0].lower()}{where[1:]} has {_name(data.names, everywhere)}; a probe needs clips "
        "without it, too. Add such clips, or take the class out of the data set.",
    )


def fit_linear_probes(
    data: ProbeData, rows_N: np.ndarray, strengths: Sequence[float], balanced: bool, tolerance: float = 1e-6
) -> Iterator[LinearProbe]:
    """Fit one probe for each strength of the regularisation; each fit starts from the one before.

    The loss is the mean over clips plus `strength / 2` times the squared weights, without the biases. A class that no
    clip or every clip has keeps weights of 0.

    Args:
        data: features and labels.
        rows_N: indices of the training clips.
        strengths: strengths, the largest first for the shortest time.
        balanced: whether a clip counts in inverse proportion to the number of clips of its class.
        tolerance: largest element of the gradient at the optimum.

    Yields:
        The probe of each strength.
    """
    problem = _Problem(data, rows_N, balanced)
    flat = problem.start
    for strength in strengths:
        options = {"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "gtol": tolerance, "ftol": 1e-15, "maxcor": 20}
        result = minimize(problem.measure, flat, args=(strength,), jac=True, method="L-BFGS-B", options=options)
        flat = result.x
        yield problem.unfold(flat)


class _Problem:
    """Loss and gradient of a probe on standardised features."""

    def __init__(self, data: ProbeData, rows_N: np.ndarray, balanced: bool) -> None:
        self._data, self._rows_N, self._total = data, rows_N, len(rows_N)
        self._shift_E, self._scale_E, count_C = _measure(data, rows_N)
        has_both = count_C > 0 if data.loss == "cross_entropy" else (count_C > 0) & (count_C < self._total)
        self._learned_K, self._count_C = np.flatnonzero(has_both), count_C
        self._set_weights(balanced)
        bytes_held = 8 * self._total * (len(self._shift_E) + len(self._learned_K))
        self._held = list(self._read()) if bytes_held <= MOST_HELD_BYTES else None

    def _set_weights(self, balanced: bool) -> None:
        """Set the weight of a clip that has a class, and of one that lacks it, as scikit-learn's `balanced` does."""
        count_K = self._count_C[self._learned_K].astype(np.float64)
        self._weight_K = self._weight_without_K = np.ones_like(count_K)
        if balanced and self._data.loss == "cross_entropy":
            self._weight_K = self._total / (len(count_K) * count_K)
        elif balanced:
            self._weight_K, self._weight_without_K = (
                self._total / (2 * count_K),
                self._total / (2 * (self._total - count_K)),
            )

    @property
    def start(self) -> Floats:
        """Weights of 0, from which the first fit begins."""
        return np.zeros(len(self._learned_K) * (len(self._shift_E) + 1))

    def measure(self, flat: Floats, strength: float) -> tuple[float, Floats]:
        """Return the loss and its gradient at weights and biases in one vector."""
        weight_KE, bias_K = self._split(flat)
        value, slope_KE = 0.5 * strength * float((weight_KE**2).sum()), strength * weight_KE
        slope_K = np.zeros_like(bias_K)
        for features_BE, labels_BK in self._held or self._read():
            loss, error_BK = self._compare(features_BE @ weight_KE.T + bias_K, labels_BK)
            value += loss / self._total
            slope_KE += error_BK.T @ features_BE / self._total
            slope_K += error_BK.sum(axis=0) / self._total
        return value, np.concatenate([slope_KE.ravel(), slope_K])

    def unfold(self, flat: Floats) -> LinearProbe:
        """Return the probe on features that are not standardised."""
        weight_KE, bias_K = self._split(flat)
        weight_CE = np.zeros((len(self._count_C), len(self._shift_E)))
        bias_C = np.where(self._count_C == 0, -CERTAIN, CERTAIN)
        weight_CE[self._learned_K] = weight_KE / self._scale_E
        bias_C[self._learned_K] = bias_K - weight_CE[self._learned_K] @ self._shift_E
        return LinearProbe(weight_CE, bias_C, self._data.loss)

    def _split(self, flat: Floats) -> tuple[Floats, Floats]:
        classes = len(self._learned_K)
        return flat[:-classes].reshape(classes, -1), flat[-classes:]

    def _read(self) -> Iterator[tuple[Floats, Floats]]:
        """Yield standardised features [B, E] and labels [B, K] of blocks of clips."""
        for rows_B in _blocks(self._rows_N):
            features_BE = (self._data.read(rows_B).astype(np.float64) - self._shift_E) / self._scale_E
            yield features_BE, self._data.labels.rows(rows_B)[:, self._learned_K].astype(np.float64)

    def _compare(self, logits_BK: Floats, labels_BK: Floats) -> tuple[float, Floats]:
        """Return the weighted sum of the losses, and its derivative by the logits, [B, K]."""
        if self._data.loss == "cross_entropy":
            weight_B = labels_BK @ self._weight_K
            log_BK = _log_softmax(logits_BK)
            loss = -float(weight_B @ (labels_BK * log_BK).sum(axis=1))
            return loss, (np.exp(log_BK) - labels_BK) * weight_B[:, None]
        weight_BK = np.where(labels_BK > 0, self._weight_K, self._weight_without_K)
        loss = float((weight_BK * (np.logaddexp(0, logits_BK) - labels_BK * logits_BK)).sum())
        return loss, weight_BK * (0.5 + 0.5 * np.tanh(logits_BK / 2) - labels_BK)


def _measure(data: ProbeData, rows_N: np.ndarray) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Return mean and standard deviation of each feature, [E], and the clips of each class, [C]."""
    sum_E, count_C = np.zeros(1), np.zeros(len(data.names), np.int64)
    for rows_B in _blocks(rows_N):
        sum_E = sum_E + data.read(rows_B).sum(axis=0, dtype=np.float64)
        count_C += data.labels.rows(rows_B).sum(axis=0, dtype=np.int64)
    mean_E = sum_E / len(rows_N)
    square_E = np.zeros_like(mean_E)
    for rows_B in _blocks(rows_N):
        square_E += ((data.read(rows_B).astype(np.float64) - mean_E) ** 2).sum(axis=0)
    scale_E = np.sqrt(square_E / len(rows_N))
    return mean_E, np.where(scale_E < SMALLEST_SCALE, 1.0, scale_E), count_C


def _blocks(rows_N: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows_N), BLOCK):
        yield rows_N[first : first + BLOCK]


def _log_softmax(logits_BC: Floats) -> Floats:
    shifted_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
    log_BC: Floats = shifted_BC - np.log(np.exp(shifted_BC).sum(axis=1, keepdims=True))
    return log_BC


def _name(names: Sequence[str], places: np.ndarray) -> str:
    """Return the first names at some places, and how many more there are."""
    shown = ", ".join(names[place] for place in places[:SHOWN])
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return f"the {'class' if len(places) == 1 else 'classes'} {shown}{more}"
