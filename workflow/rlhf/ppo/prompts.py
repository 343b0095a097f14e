"""The rows of a PPO stage: prompts that are short enough, and SFT rows that are mixed in."""

from __future__ import annotations

from rlhf.config.stages import PpoSettings
from rlhf.data.corpus import Corpus
from rlhf.errors import UserError


def keep_prompts(prompts: Corpus, limit: int) -> int:
    """Leave out prompts of more tokens than `max_prompt_seq_len`; returns how many these are.

    Raises:
        UserError: none is left.
    """
    fits = prompts.lengths("prompt") <= limit
    return prompts.keep(fits, f"ppo.max_prompt_seq_len: {limit}")


def keep_mixed(corpus: Corpus, settings: PpoSettings) -> int:
    """Leave out SFT rows of more tokens than a prompt and an answer of PPO may have; returns how many these are.

    Raises:
        UserError: none is left.
    """
    limit = settings.max_prompt_seq_len + settings.max_answer_seq_len
    fits = corpus.lengths("prompt") + corpus.lengths("chosen") <= limit
    return corpus.keep(fits, f"ppo.max_prompt_seq_len + max_answer_seq_len: {limit}")


def planned_iterations(settings: PpoSettings, prompts: Corpus) -> int:
    """Rollouts of a whole run."""
    seen = settings.num_train_epochs * prompts.rows_per_epoch
    return settings.iterations or max(1, seen // settings.prompts_per_rollout)


def trained_iterations(iterations: int, critic_warmup: int) -> int:
    """Iterations in which the policy trains; its learning-rate schedule spans their steps, so that it reaches its end.

    Raises:
        UserError: there are none, because the value model warms up in all of them.
    """
    if critic_warmup >= iterations:
        raise UserError(
            f"ppo.critic_warmup_iterations: {critic_warmup} of {iterations} iterations train the value model alone, so "
            "the policy would never train; lower it, or raise ppo.iterations (or ppo.num_train_epochs)"
        )
    return iterations - critic_warmup
