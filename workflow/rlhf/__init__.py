"""RLHF in three phases: supervised fine-tuning, reward model, PPO."""
