"""The names of the phases, and of every kind of stage with the rule that makes it."""

from typing import Literal, get_args

PhaseName = Literal["sft", "reward", "ppo"]
# In the order of the proportions in `data_split`. A kind of this name is the stage that trains.
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
# Phase -> those whose models it starts from, whatever its settings.
STARTS_FROM: dict[str, tuple[PhaseName, ...]] = {"ppo": ("sft", "reward")}

# What measures trained models, and all stages that load a model: each has a memory plan.
EVALUATIONS = ("evaluate_sft", "evaluate_reward", "baseline", "evaluate_ppo")
PLANNED = (*PHASES, *EVALUATIONS)

# Kind of stage -> its rule, upstream first. A kind is called by what it makes, or as its rule where that is an
# evaluation; it is hashed in every ID and names the folder below results/, so it stays.
RULES = {
    "dataset": "cache_dataset",
    "model": "cache_model",
    "tokens": "tokenize_dataset",
    "split": "split_dataset",
    "sft": "train_sft",
    "evaluate_sft": "evaluate_sft",
    "reward": "train_reward",
    "evaluate_reward": "evaluate_reward",
    "baseline": "sample_baseline",
    "ppo": "train_ppo",
    "evaluate_ppo": "evaluate_ppo",
}
