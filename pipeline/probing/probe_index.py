"""The data of a run folder that `probe` made without shards, as the report takes it."""

from __future__ import annotations

from typing import Any

from ast_core.errors import DamagedError, UserError
from ast_core.serialization import from_dict
from ast_core.shards.index import ShardIndex, SplitCounts
from ast_core.storage.json_files import read_json
from ast_core.weights.bundle_description import read_description
from pipeline.probing.probe_clips import SplitUse
from pipeline.run_folder.layout import PROBE, RunFolder


def load_probe_index(run: RunFolder) -> ShardIndex:
    """Return an index without parts: the probe's clips, and the front end and the log-mel statistics of its model.

    Raises:
        UserError: the probe's bundle does not exist.
        DamagedError: a file is not as `probe` wrote it.
    """
    description = read_description(run.bundle(PROBE))
    entry = description.members[0]
    values = read_json(run.probe_result, "Result of probe")
    try:
        uses = {name: from_dict(SplitUse, own) for name, own in values["splits"].items()}
        splits = {name: _count(use, entry.mean, entry.std) for name, use in uses.items() if use.used}
        fields: dict[str, Any] = {"front_end": entry.front_end, "labels": description.labels, "splits": splits}
        single, data_hash = description.single_label, description.facts.data_hash
        return ShardIndex(**fields, single_label=single, layout=str(values["layout"]), data_hash=data_hash)
    except (UserError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(f"{run.probe_result} is not as probe writes it: {error}. Run probe again.") from None


def _count(use: SplitUse, mean: float, std: float) -> SplitCounts:
    """Return the counts of a split whose clips have the model's mean and standard deviation."""
    return SplitCounts(use.listed, use.used, use.rejected, use.missing, 1, mean, mean**2 + std**2, ())
