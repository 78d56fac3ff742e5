"""Time of mAP and mean AUC on a test as large as AudioSet's, and difference from scikit-learn, class by class.

python benchmarks/metrics.py
"""

from __future__ import annotations

import numpy as np
from peers.comparison import arguments, interleave, one_core, print_machine, print_medians, print_ratio, verdict
from sklearn.metrics import average_precision_score, roc_auc_score

from ast_core.evaluation.metrics import average_precision_C, evaluate_scores, roc_auc_C

GOAL, GOAL_DIFFERENCE = 15, 1e-12
CLIPS, CLASSES, ROUNDS = 20_550, 527, 5


def make_test(clips: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels [N, C]: classes as uneven as AudioSet's, 2.4 labels a clip, useful scores, ties."""
    rng = np.random.default_rng(0)
    share_C = np.maximum(0.003, 0.3 / np.arange(1, classes + 1) ** 1.2)
    labels_NC = (rng.random((clips, classes)) < share_C).astype(np.float32)
    labels_NC[:2] = [[1.0], [0.0]]  # each class has a positive and a negative
    logits_NC = rng.normal(-4, 2, (clips, classes)) + 3 * labels_NC
    return np.round(1 / (1 + np.exp(-logits_NC)), 5).astype(np.float32), labels_NC


def evaluate_with_scikit_learn(scores_NC: np.ndarray, labels_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return average precision and AUC of each class."""
    columns = list(zip(labels_NC.T, scores_NC.T, strict=True))
    precision_C = [average_precision_score(labels_N, scores_N) for labels_N, scores_N in columns]
    auc_C = [roc_auc_score(labels_N, scores_N) for labels_N, scores_N in columns]
    return np.array(precision_C), np.array(auc_C)


def main() -> None:
    """Time both on the same scores, with ties."""
    args = arguments(__doc__).parse_args()
    one_core()
    scores_NC, labels_NC = make_test(*((400, 20) if args.quick else (CLIPS, CLASSES)))
    ways = {
        "scikit-learn": lambda: evaluate_with_scikit_learn(scores_NC, labels_NC),
        "ours": lambda: evaluate_scores(scores_NC, labels_NC, single_label=False),
    }
    seconds = interleave(ways, 2 if args.quick else ROUNDS)
    print_medians(seconds, f"CPU time of mAP and AUC of {len(scores_NC)} clips x {scores_NC.shape[1]} classes")
    print_ratio(seconds, "scikit-learn", goal=GOAL)
    own = average_precision_C(scores_NC, labels_NC), roc_auc_C(scores_NC, labels_NC)
    theirs = evaluate_with_scikit_learn(scores_NC, labels_NC)
    worst = max(float(np.abs(one - other).max()) for one, other in zip(own, theirs, strict=True))
    print(f"largest difference of a class {worst:.1e}; goal {GOAL_DIFFERENCE:g}: {verdict(worst <= GOAL_DIFFERENCE)}")
    print_machine()


if __name__ == "__main__":
    main()
