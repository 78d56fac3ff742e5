"""The model card: what a registered model is, how good it is and on what, how to use it."""

from __future__ import annotations

import math
from typing import Any

from ast_core.bundle import Bundle

NAMES = {
    "mAP": "mAP",
    "mAUC": "mean ROC AUC",
    "d_prime": "d'",
    "accuracy": "accuracy",
    "chance_mAP": "mAP by chance",
    "chance_accuracy": "accuracy by chance",
}
"""Metrics as a person names them."""


def model_card(name: str, bundle: Bundle, evaluation: dict[str, Any]) -> str:
    """Markdown for a registered model.

    Args:
        name: in the registry.
        bundle: what is registered.
        evaluation: content of its `evaluation/NAME.json`.

    Returns:
        The card.
    """
    facts, front = bundle.facts, bundle.front_end
    kind = "one label a clip" if bundle.single_label else "any number of labels a clip"
    seeds = ", ".join(str(seed) for seed in facts.get("seeds", []))
    members = "\n".join(_member_line(bundle, number) for number in range(len(bundle.members)))
    return f"""# {name}

Audio Spectrogram Transformer: recordings to probabilities of {len(bundle.labels)} classes, {kind}.

{_results(evaluation)}

## What it is

- Recipe `{facts.get("recipe", "")}`, seeds {seeds}; weights: {facts.get("made_of", "")}.
- Input: mono at {front.sample_rate_hz} Hz (other rates and channels are converted), {front.num_mel_bins} mel bins,
  {front.frame_shift_ms:g} ms a frame. Longer recordings are cut into windows of {front.target_frames} frames;
  their mean counts.
- Bundle `{bundle.digest}`, data `{facts.get("data_hash", "")}`.

{members}

## Use

```
python pipeline/predict.py RECORDING --model models:/{name}@champion
```

As MLflow pyfunc model: a table with the column `audio` (the bytes of a recording; base64 in JSON) to a table with
a column a label.

## Classes

{", ".join(bundle.labels)}
"""


def _results(evaluation: dict[str, Any]) -> str:
    listed, seen = evaluation["clips_listed"], evaluation["clips_evaluated"]
    rows = "\n".join(f"| {NAMES.get(key, key)} | {_shown(value)} |" for key, value in evaluation["metrics"].items())
    return (
        f"Measured on {seen} of the {listed} clips listed in the split `{evaluation['split']}`, each once.\n\n"
        f"| metric | value |\n|---|---|\n{rows}"
    )


def _shown(value: float | None) -> str:
    return "not defined" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _member_line(bundle: Bundle, number: int) -> str:
    member = bundle.members[number]
    millions = sum(parameter.numel() for parameter in member.model.parameters()) / 1e6
    scale = f"mean {member.mean:.4f}, std {member.std:.4f}"
    return f"- Member `{member.name}`: {millions:.2f} M parameters, normalised with {scale}."
