"""DeepSpeed-Chat's sizes per device as global ones."""

from __future__ import annotations

from rlhf.convert.arguments import Command
from rlhf.errors import UserError


def rollout_sizes(command: Command, processes: int) -> tuple[int, int]:
    """Prompts of a rollout over all processes, and optimizer steps of each pass over it.

    DeepSpeed-Chat collects `generation_batches` batches, cuts them into training batches, and takes an optimizer step
    after `gradient_accumulation_steps` of these. Where a step needs more than one such collection, the rollout here
    is what the step is made of.

    Raises:
        UserError: the sizes do not divide each other, so that steps would straddle rollouts.
    """
    generation, training = (command.value(f"per_device_{use}_batch_size") for use in ("generation", "training"))
    collected = generation * command.value("generation_batches")
    accumulated = training * command.value("gradient_accumulation_steps")
    if collected % training == 0 and collected % accumulated == 0:
        return collected * processes, collected // accumulated
    if collected % training == 0 and accumulated % collected == 0 and command.value("ppo_epochs") == 1:
        return accumulated * processes, 1
    raise UserError(
        f"{command.place}: {collected} prompts are collected per device and {accumulated} make an optimizer step "
        f"(batches of {training}, {command.value('ppo_epochs')} passes): steps would straddle rollouts. "
        "Choose sizes that divide each other"
    )
