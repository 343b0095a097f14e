"""Dry runs of one stage, each made once however many ways of running it are compared."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from rlhf.memory.blueprint import Blueprint, Counts, count
from rlhf.memory.dryrun import Places, Program, dry_run
from rlhf.training.engine import parameter_groups


class Traces:
    """Makes each dry run of a stage once, and remembers what it showed.

    Args:
        cuda: the stage runs on GPUs.
    """

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self._places: dict[Hashable, Places] = {}
        self._counts: dict[Hashable, Counts] = {}

    def places(self, blueprint: Blueprint, name: str, program: Program, share: float, *key: Hashable) -> Places:
        """Peaks of a program, traced unless it has been.

        Args:
            blueprint: the model.
            name: of the program.
            program: what is run.
            share: of the gradients that stays.
            key: everything else that the program depends on.
        """
        identity = (_identity(blueprint), blueprint.checkpointing, name, share, *key)
        if identity not in self._places:
            self._places[identity] = dry_run(blueprint, program, self.cuda, share)
        return self._places[identity]

    def counts(self, blueprint: Blueprint) -> Counts:
        """Parameters of a model, by the optimizer's groups."""

        def grouping(model: nn.Module) -> list[list[nn.Parameter]]:
            if blueprint.optimization is None:
                return []
            return [group["params"] for group in parameter_groups(model, blueprint.optimization)]

        identity = _identity(blueprint)
        if identity not in self._counts:
            self._counts[identity] = count(blueprint, grouping)
        return self._counts[identity]


def _identity(blueprint: Blueprint) -> Hashable:
    return (
        blueprint.config.to_json_string(use_diff=False),
        blueprint.head,
        blueprint.dtype,
        None if blueprint.optimization is None else blueprint.optimization.model_dump_json(),
        blueprint.earlier,
    )
