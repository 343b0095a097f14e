"""The three phases, in the order of the proportions in `data_split`."""

PHASES = ("sft", "reward", "ppo")
