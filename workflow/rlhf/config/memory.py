"""What is done about memory before a stage runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf.config.section import Section


class MemorySettings(Section):
    """The GPU that stages are planned for, and what follows where one does not fit. No part of a stage's identity."""

    on_misfit: Literal["warn", "adapt", "refuse"] = Field(
        "warn",
        description="A stage that does not fit: say so; also plan steps that do not change its result; or fail.",
    )
    gpu: str | None = Field(None, description="Name of the GPU, for example `a100-40g`; unset: nothing is judged.")
    gpu_memory_gib: float | None = Field(None, gt=0, description="Its memory in GiB; unset: as the name says.")
