"""The model card: what a registered model is, how good it is and on what, where it came from, how to use it."""

from __future__ import annotations

import math
from typing import Any

from ast_core.weights.bundle import Bundle

NAMES = {
    "accuracy": "accuracy",
    "mAP": "mAP",
    "mAUC": "mean ROC AUC",
    "d_prime": "d'",
    "chance_mAP": "mAP by chance",
    "chance_accuracy": "accuracy by chance",
}
"""Metrics as a person names them."""
SHOWN_CLASSES = 5
"""Best and worst; all are in the artifact `per_class`."""


def model_card(name: str, bundle: Bundle, evaluation: dict[str, Any]) -> str:
    """Markdown for a registered model.

    Args:
        name: in the registry.
        bundle: what is registered.
        evaluation: content of its `evaluation/NAME.json`.

    Returns:
        The card. A paragraph is one line: MLflow's page breaks lines where the text does.
    """
    front = bundle.front_end
    kind = "one label a clip" if bundle.single_label else "any number of labels a clip"
    members = "\n".join(_member_line(bundle, number) for number in range(len(bundle.members)))
    return f"""# {name}

Audio Spectrogram Transformer: recordings to probabilities of {len(bundle.labels)} classes, {kind}.

## How good it is

{_results(evaluation)}

{_classes(evaluation)}

{_decisions(bundle)}

## What it is

- Input: mono at {front.sample_rate_hz} Hz (other rates and channels are converted), {front.num_mel_bins} mel bins, \
{front.frame_shift_ms:g} ms a frame. Longer recordings are cut into windows of {front.target_frames} frames \
({front.target_frames * front.frame_shift_ms / 1000:g} s); their mean counts.
{members}

## Where it came from

{_lineage(bundle, evaluation)}

## Use

```
python pipeline/predict.py RECORDING --model models:/{name}@champion
```

As MLflow pyfunc model, a row a recording: `audio` (the bytes of a file; base64 in JSON), or `waveform` (mono samples) \
with `sample_rate_hz`. The answer has a column a label, and `clip_error` where a recording could not be used.

## What to know

It knows only the sounds that it was trained on, and gives each of its classes a probability whatever it hears. \
Recordings from other microphones, rooms and distances than the training set's are recognised less well than the \
figures above say.

## Classes

{", ".join(bundle.labels)}
"""


def _results(evaluation: dict[str, Any]) -> str:
    listed, seen = evaluation["clips_listed"], evaluation["clips_evaluated"]
    intervals = evaluation.get("intervals", {})
    rows = "\n".join(
        f"| {NAMES.get(key, key)} | {_shown(value)}{_interval(intervals.get(key))} |"
        for key, value in sorted(evaluation["metrics"].items(), key=lambda item: [*NAMES, item[0]].index(item[0]))
    )
    return (
        f"Measured on {seen} of the {listed} clips listed in the split `{evaluation['split']}`, each once.\n\n"
        f"| metric | value |\n|---|---|\n{rows}"
    )


def _classes(evaluation: dict[str, Any]) -> str:
    """Average precision of the best and the worst classes."""
    classes = evaluation.get("per_class", {}).items()
    known = [(row["ap"], label, row["positives"]) for label, row in classes if row["ap"] is not None]
    ranked = sorted(known, key=lambda row: -row[0])
    if not ranked:
        return ""
    shown = ranked if len(ranked) <= 2 * SHOWN_CLASSES else ranked[:SHOWN_CLASSES] + ranked[-SHOWN_CLASSES:]
    title = "Classes" if shown == ranked else f"The best and the worst {SHOWN_CLASSES} of {len(ranked)} classes"
    rows = "\n".join(f"| {label.replace('|', '/')} | {count:.0f} | {ap:.3f} |" for ap, label, count in shown)
    return f"{title}:\n\n| class | test clips | average precision |\n|---|---|---|\n{rows}"


def _decisions(bundle: Bundle) -> str:
    if bundle.decisions is None:
        return "It has no thresholds: `calibrate` fits them on a validation split."
    how = "a temperature" if bundle.decisions.one_label else "Platt's scaling and the threshold of the best F1, a class"
    return f"Calibrated on the split `{bundle.decisions.fitted_on.get('split', '')}` ({how}): `predict --decide`."


def _lineage(bundle: Bundle, evaluation: dict[str, Any]) -> str:
    facts = bundle.facts
    values = {
        "recipe": facts.get("recipe", ""),
        "weights": facts.get("made_of", ""),
        "seeds": ", ".join(str(seed) for seed in facts.get("seeds", [])),
        "training runs": ", ".join(f"`{run}`" for run in facts.get("train_runs", [])),
        "data": f"`{facts.get('data_hash', '')}`",
        "test clips": f"`{evaluation.get('evaluated_on', '')}`",
        "bundle": f"`{bundle.digest}`",
    }
    return "| what | which |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in values.items())


def _shown(value: float | None) -> str:
    return "not defined" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _interval(ends: list[float | None] | None) -> str:
    return f" (95 %: {_shown(ends[0])} to {_shown(ends[1])})" if ends else ""


def _member_line(bundle: Bundle, number: int) -> str:
    member = bundle.members[number]
    model = member.config
    millions = sum(parameter.numel() for parameter in member.model.parameters()) / 1e6
    patches = f"{model.patch_freq} x {model.patch_time} patches at strides {model.freq_stride}, {model.time_stride}"
    size = f"{model.backbone}, {millions:.2f} M parameters"
    return f"- `{member.name}`: {size}, {patches}, normalised with mean {member.mean:.4f}, std {member.std:.4f}."
