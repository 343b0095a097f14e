"""What all oracles start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.oracle.material import random_rows, save_policy, save_reward
from tests.oracle.stages import Data, make_data


@dataclass(frozen=True)
class Start:
    """The models of a family, and data in its tokens."""

    family: str
    policy: Path
    reward: Path
    data: Data


@pytest.fixture(scope="session")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Start]:
    """Family -> what a run starts from."""
    root = tmp_path_factory.mktemp("oracle")
    made = {}
    for number, family in enumerate(("gpt2", "llama")):
        folder = root / family
        policy = save_policy(folder / "policy", family, seed=10 + number)
        reward = save_reward(folder / "reward", family, seed=20 + number)
        rows, unseen = random_rows(32, seed=30 + number), random_rows(12, seed=40 + number)
        made[family] = Start(family, policy, reward, make_data(folder / "data", rows, unseen, policy, "1,1,2"))
    return made
