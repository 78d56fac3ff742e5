"""A member whose input has another length than that of its training."""

from __future__ import annotations

import dataclasses

import torch

from ast_core.config import LEAST_FRAMES, MOST_FRAMES, Positions
from ast_core.errors import require
from ast_core.model.transformer import AST
from ast_core.weights.ensemble_mean import Member
from ast_core.weights.positions import adapt_positions
from ast_core.weights.pretrained import load_exactly


def adapt_member(member: Member, target_frames: int) -> Member:
    """Return a member with positions for another number of frames, as a training from its bundle begins with them.

    The method is that of the member's `positions`, or `bilinear` if it drew them anew. The two members share all other
    weights.

    Args:
        member: model in evaluation mode; returned as it is if it has this length.
        target_frames: frames of the new input, also more than the member's.

    Raises:
        UserError: the input would be smaller than a patch, or larger than `MOST_FRAMES`.
    """
    config, front_end, own = member.config, member.front_end, member.model
    if target_frames == front_end.target_frames:
        return member
    least = max(config.patch_time, LEAST_FRAMES)
    require(
        least <= target_frames <= MOST_FRAMES,
        f"target-frames is {target_frames}, and the patches of member {member.name} are {config.patch_time} frames "
        f"wide; give {least} to {MOST_FRAMES}.",
    )
    with torch.device("meta"):  # only the shapes: the weights are those of the member
        model = AST(config, front_end.num_mel_bins, target_frames, own.head.out_features)
    weights = own.state_dict()
    mode: Positions = "bilinear" if config.positions == "reinitialised" else config.positions
    weights["pos_embed"] = adapt_positions(weights["pos_embed"], own.grid, model.grid, own.prefix_tokens, mode)
    load_exactly(model, weights, member.name)
    front_end = dataclasses.replace(front_end, target_frames=target_frames)
    return dataclasses.replace(member, model=model.eval(), front_end=front_end)
