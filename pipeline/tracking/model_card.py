"""The model card of a registered model: scores, architecture, origin and use."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ast_core.weights.bundle import Bundle
from pipeline.scoring.results import EvaluationResult

NAMES = {
    "accuracy": "accuracy",
    "mAP": "mAP",
    "mAUC": "mean ROC AUC",
    "d_prime": "d'",
    "chance_mAP": "mAP of chance",
    "chance_accuracy": "accuracy of chance",
}
"""Names of the metrics in the card."""
SHOWN_CLASSES = 5
"""Number of best and of worst classes in the card; the artifact `per_class` has all classes."""


def model_card(name: str, bundle: Bundle, evaluation: EvaluationResult) -> str:
    """Write the Markdown text of a registered model.

    Args:
        name: name of the model in the registry.
        bundle: the registered bundle.
        evaluation: content of the bundle's `evaluation/NAME.json`.

    Returns:
        The card. Each paragraph is one line, because MLflow's page keeps the line breaks of the text.
    """
    front = bundle.front_end
    kind = "one label per clip" if bundle.single_label else "any number of labels per clip"
    members = "\n".join(_describe_member(bundle, number) for number in range(len(bundle.members)))
    return f"""# {name}

An Audio Spectrogram Transformer. It predicts the probabilities of {len(bundle.labels)} classes for a recording, {kind}.

## Results

{_describe_results(evaluation)}

{_describe_classes(evaluation)}

{_describe_decisions(bundle)}

## Model

- Input: mono at {front.sample_rate_hz} Hz (other rates and channels are converted), {front.num_mel_bins} mel bins, \
{front.frame_shift_ms:g} ms per frame. Longer recordings are cut into windows of {front.target_frames} frames \
({front.target_frames * front.frame_shift_ms / 1000:g} s), and the probabilities of the windows are averaged.
{members}

## Origin

{_describe_origin(bundle, evaluation)}

## Use

```
ast-pipeline predict RECORDING --model models:/{name}@champion
```

As an MLflow pyfunc model, each row of the input is a recording: `audio` (the bytes of a file; base64 in JSON), or \
`waveform` (mono samples in [-1, 1]) with `sample_rate_hz`. The output has the columns `error` (the reason why a \
recording could not be used), `labels` (the most probable classes) and `probabilities` (those of all classes, by name).

## Limitations

The model knows only the classes that it was trained on, and predicts a probability for each of them whatever the \
recording contains. Expect lower scores than those above for recordings from other microphones, rooms and distances \
than those of the training set.

## Classes

{", ".join(bundle.labels)}
"""


def _describe_results(evaluation: EvaluationResult) -> str:
    rows = "\n".join(
        f"| {NAMES.get(key, key)} | {_format_number(value)}{_format_interval(evaluation.intervals.get(key))} |"
        for key, value in sorted(evaluation.metrics.items(), key=lambda item: [*NAMES, item[0]].index(item[0]))
    )
    return (
        f"Measured on {evaluation.clips_evaluated} of the {evaluation.clips_listed} clips listed in the split "
        f"`{evaluation.split}`, each clip once.\n\n"
        f"| metric | value |\n|---|---|\n{rows}"
    )


def _describe_classes(evaluation: EvaluationResult) -> str:
    """Return a table of the average precision of the best and the worst classes."""
    classes = evaluation.per_class.items()
    known = [(row.ap, label, row.positives) for label, row in classes if row.ap is not None]
    ranked = sorted(known, key=lambda row: -row[0])
    if not ranked:
        return ""
    shown = ranked if len(ranked) <= 2 * SHOWN_CLASSES else ranked[:SHOWN_CLASSES] + ranked[-SHOWN_CLASSES:]
    title = (
        "Classes"
        if shown == ranked
        else f"The {SHOWN_CLASSES} best and the {SHOWN_CLASSES} worst of {len(ranked)} classes"
    )
    rows = "\n".join(f"| {label.replace('|', '/')} | {count:.0f} | {ap:.3f} |" for ap, label, count in shown)
    return f"{title}:\n\n| class | test clips | average precision |\n|---|---|---|\n{rows}"


def _describe_decisions(bundle: Bundle) -> str:
    if bundle.decisions is None:
        return "The model has no thresholds yet; `calibrate` fits them on a validation split."
    how = (
        "a temperature"
        if bundle.decisions.one_label
        else "Platt scaling and the threshold of the best F1 for each class"
    )
    return (
        f"Calibrated on the split `{bundle.decisions.fitted_on.get('split', '')}` ({how}); `predict --decide` uses it."
    )


def _describe_origin(bundle: Bundle, evaluation: EvaluationResult) -> str:
    facts = bundle.facts
    values = {
        "recipe": facts.recipe,
        "weights": facts.made_of,
        "seeds": ", ".join(str(seed) for seed in facts.seeds),
        "training runs": ", ".join(f"`{run}`" for run in facts.train_runs),
        "data": f"`{facts.data_hash}`",
        "test clips": f"`{evaluation.evaluated_on}`",
        "bundle": f"`{bundle.digest}`",
    }
    return "| property | value |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in values.items())


def _format_number(value: float | None) -> str:
    return "not defined" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _format_interval(ends: Sequence[float | None] | None) -> str:
    return f" (95 %: {_format_number(ends[0])} to {_format_number(ends[1])})" if ends else ""


def _describe_member(bundle: Bundle, number: int) -> str:
    member = bundle.members[number]
    model = member.config
    millions = sum(parameter.numel() for parameter in member.model.parameters()) / 1e6
    patches = f"{model.patch_freq} x {model.patch_time} patches at strides {model.freq_stride}, {model.time_stride}"
    size = f"{model.backbone}, {millions:.2f} M parameters"
    return f"- `{member.name}`: {size}, {patches}, normalised with mean {member.mean:.4f}, std {member.std:.4f}."
