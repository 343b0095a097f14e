"""PPO once more, from the papers and config/README.md: what a stage must log, and the weights it must end with.

In float64 and one answer at a time; a quantity "per token" is a list with one array for each answer, so nothing here
is padded or masked. What is drawn at random (answers, minibatches, first adapters) is given. Nothing of `rlhf` is used.

Sources: PPO (Schulman et al. 2017), GAE (Schulman et al. 2016), KL penalty and adaptive coefficient (Ziegler et al.
2019), PPO-ptx (Ouyang et al. 2022), RLOO (Ahmadian et al. 2024), GRPO (Shao et al. 2024), KL estimators (Schulman
2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracle.networks import LanguageModel, Network, Scorer
from tests.oracle.optimizer import AdamW

Arrays = list[np.ndarray]  # one array for each answer


@dataclass(frozen=True)
class Rollout:
    """What was drawn in one iteration."""

    prompts: Arrays
    answers: Arrays  # EOS included
    finished: list[bool]
    epochs: list[list[np.ndarray]]  # for each PPO epoch: the answers of each minibatch


@dataclass
class Scored:
    """What the models say about a rollout before any step, per token; `score` per answer."""

    logprobs: Arrays
    ref_logprobs: Arrays
    entropy: Arrays
    values: Arrays
    score: np.ndarray


class Ppo:
    """One run.

    Args:
        settings: of the stage, as its spec.yaml has them.
        iterations: rollouts of the run.
        policy: the SFT model, which trains.
        reference: the SFT model, which stays.
        critic: the value model, or None.
        reward: the reward model; takes (prompt, answer, finished).
        mixed: (prompt, answer) of the SFT rows in each step.
        gold: judges (prompt, answer, finished).
    """

    def __init__(
        self,
        settings: dict[str, Any],
        iterations: int,
        policy: LanguageModel,
        reference: LanguageModel,
        critic: Scorer | None,
        reward: Callable[[np.ndarray, np.ndarray, bool], float],
        mixed: Sequence[tuple[np.ndarray, np.ndarray]] = (),
        gold: Callable[[np.ndarray, np.ndarray, bool], float] | None = None,
    ) -> None:
        self.settings = settings
        self.policy, self.reference, self.critic, self._reward = policy, reference, critic, reward
        self._mixed, self._gold = mixed, gold
        steps = settings["ppo_epochs"] * settings["minibatches"]
        warm = iterations - settings["critic_warmup_iterations"]  # those in which the policy steps
        self._actor_optimizer = AdamW(policy, settings["actor"], steps * warm)
        self._critic_optimizer = None if critic is None else AdamW(critic, settings["critic"], steps * iterations)
        self._beta = settings["kl_coefficient"]
        self._average = {name: weight.detach().clone() for name, weight in policy.trained.items()}
        self._done = self._tokens = 0

    def iteration(self, rollout: Rollout) -> dict[str, float]:
        """Score and train on a rollout; returns what the stage must log."""
        settings = self.settings
        scored = self._score(rollout)
        rewards = self._rewards(rollout, scored)
        advantages, returns = self._advantages(rewards, scored)
        metrics = self._looks(rollout, scored, advantages, returns)
        metrics |= self._train(rollout, scored, advantages, returns)
        if settings["kl_target"] is not None:
            error = np.clip(metrics["kl"] / settings["kl_target"] - 1, -0.2, 0.2)
            self._beta *= 1 + error * len(rollout.answers) / settings["kl_horizon"]
        self._done += 1
        return metrics

    def _score(self, rollout: Rollout) -> Scored:
        temperature, pairs = self.settings["temperature"], list(zip(rollout.prompts, rollout.answers, strict=True))
        with torch.no_grad():
            tables = [self.policy.distributions(*pair, temperature) for pair in pairs]
            return Scored(
                logprobs=[self.policy.logprobs(*pair, temperature).numpy() for pair in pairs],
                ref_logprobs=[self.reference.logprobs(*pair, temperature).numpy() for pair in pairs],
                entropy=[-(table.exp() * table).sum(-1).numpy() for table in tables],
                values=[] if self.critic is None else [self.critic.values(*pair).numpy() for pair in pairs],
                score=np.array([self._reward(*pair, end) for pair, end in zip(pairs, rollout.finished, strict=True)]),
            )

    def _rewards(self, rollout: Rollout, scored: Scored) -> Arrays:
        """Token rewards: minus the KL penalty, and at the last token the clipped score less the missing-EOS penalty."""
        settings, rewards = self.settings, []
        for number, (log, ref) in enumerate(zip(scored.logprobs, scored.ref_logprobs, strict=True)):
            reward = np.zeros(len(log))
            if settings["kl_in"] == "reward":
                reward -= self._beta * kl_estimate(log - ref, settings["kl_estimator"])
            reward[-1] += min(max(scored.score[number], -settings["reward_clip"]), settings["reward_clip"])
            reward[-1] -= 0.0 if rollout.finished[number] else settings["missing_eos_penalty"]
            rewards.append(reward)
        if settings["whiten_rewards"]:
            deviation = np.concatenate(rewards).std()
            rewards = [reward / deviation for reward in rewards]
        return rewards

    def _advantages(self, rewards: Arrays, scored: Scored) -> tuple[Arrays, Arrays]:
        """Advantages, whitened where that is asked for, and returns (empty without a value model)."""
        settings, returns = self.settings, []
        if self.critic is not None:
            pairs = zip(rewards, scored.values, strict=True)
            advantages = [gae(*pair, settings["gamma"], settings["gae_lambda"]) for pair in pairs]
            returns = [a + v for a, v in zip(advantages, scored.values, strict=True)]
        else:
            whole = np.array([reward.sum() for reward in rewards])
            compare = {"rloo": leave_one_out, "grpo": group_relative}[settings["advantage_estimator"]]
            size = settings["answers_per_prompt"]
            groups = [compare(whole[start : start + size]) for start in range(0, len(whole), size)]
            pairs = zip(np.concatenate(groups), rewards, strict=True)
            advantages = [np.full(len(reward), advantage) for advantage, reward in pairs]
        if settings["whiten_advantages"]:
            every = np.concatenate(advantages)
            advantages = [(one - every.mean()) / every.std() for one in advantages]
        return advantages, returns

    def _looks(self, rollout: Rollout, scored: Scored, advantages: Arrays, returns: Arrays) -> dict[str, float]:
        pairs = zip(scored.logprobs, scored.ref_logprobs, strict=True)
        self._tokens += sum(map(len, rollout.prompts)) + sum(map(len, rollout.answers))
        metrics = {
            "score": scored.score.mean(),
            "score_std": scored.score.std(),
            "kl": np.mean([(log - ref).sum() for log, ref in pairs]),
            "kl_coefficient": self._beta,
            "entropy": np.concatenate(scored.entropy).mean(),
            "tokens": self._tokens,
            "response_length": np.mean([len(answer) for answer in rollout.answers]),
            "eos_share": np.mean(rollout.finished),
            "advantage_mean": np.concatenate(advantages).mean(),
        }
        if self._done >= self.settings["critic_warmup_iterations"]:  # before, the policy takes no step
            metrics["learning_rate"] = self._actor_optimizer.learning_rate()
        if self._critic_optimizer is not None:
            target, value = np.concatenate(returns), np.concatenate(scored.values)
            metrics["explained_variance"] = 1 - np.var(target - value) / np.var(target)
            metrics["critic_learning_rate"] = self._critic_optimizer.learning_rate()
        if self._gold is not None:
            triples = zip(rollout.prompts, rollout.answers, rollout.finished, strict=True)
            metrics["gold"] = np.mean([self._gold(*triple) for triple in triples])
        return metrics

    def _train(self, rollout: Rollout, scored: Scored, advantages: Arrays, returns: Arrays) -> dict[str, float]:
        """All steps on the rollout, against the log-probabilities and values from before the first one."""
        seen: dict[str, list[float]] = {}
        for rows in (rows for epoch in rollout.epochs for rows in epoch):
            if self._done >= self.settings["critic_warmup_iterations"]:
                loss = self._policy_loss(rollout, scored, advantages, rows, seen)
                note(seen, grad_norm=[self._actor_optimizer.step(loss)])
                for name, weight in self.policy.trained.items():
                    decay = self.settings["ema_decay"] or 0.0
                    self._average[name] = decay * self._average[name] + (1 - decay) * weight.detach()
            if self._critic_optimizer is not None:
                loss = self._value_loss(rollout, scored, returns, rows, seen)
                note(seen, critic_grad_norm=[self._critic_optimizer.step(loss)])
        largest = {"ratio_max": max(seen["ratio"])} if "ratio" in seen else {}
        names = {"ratio": "ratio_mean"}
        return {names.get(name, name): float(np.mean(values)) for name, values in seen.items()} | largest

    def _policy_loss(
        self, rollout: Rollout, scored: Scored, advantages: Arrays, rows: np.ndarray, seen: dict[str, list[float]]
    ) -> Tensor:
        """Mean over the tokens of a minibatch of the clipped loss, plus the KL loss and the SFT loss."""
        settings = self.settings
        clip, losses, kls = settings["clip_range"], [], []
        for row in rows:
            log = self.policy.logprobs(rollout.prompts[row], rollout.answers[row], settings["temperature"])
            log_ratio, advantage = log - torch.from_numpy(scored.logprobs[row]), torch.from_numpy(advantages[row])
            ratio = log_ratio.exp()
            losses.append(-torch.minimum(ratio * advantage, ratio.clip(1 - clip, 1 + clip) * advantage))
            kls.append(kl_estimate(log - torch.from_numpy(scored.ref_logprobs[row]), settings["kl_estimator"]))
            note(seen, ratio=ratio, clip_fraction=(abs(ratio - 1) > clip).double(), approx_kl=log_ratio**2 / 2)
        note(seen, policy_loss=torch.cat(losses))
        loss = torch.cat(losses).mean()
        if settings["kl_in"] == "loss":
            note(seen, kl_loss=torch.cat(kls))
            loss = loss + self._beta * torch.cat(kls).mean()
        if settings["ptx_coefficient"]:
            likelihood = torch.cat([self.policy.logprobs(*pair) for pair in self._mixed])
            note(seen, ptx_loss=-likelihood)
            loss = loss - settings["ptx_coefficient"] * likelihood.mean()
        return loss

    def _value_loss(
        self, rollout: Rollout, scored: Scored, returns: Arrays, rows: np.ndarray, seen: dict[str, list[float]]
    ) -> Tensor:
        """Half the mean over the tokens of a minibatch of the larger squared error, clipped or not."""
        assert self.critic is not None
        clip, losses = self.settings["value_clip_range"], []
        for row in rows:
            value = self.critic.values(rollout.prompts[row], rollout.answers[row])
            old, target = torch.from_numpy(scored.values[row]), torch.from_numpy(returns[row])
            error = (value - target) ** 2
            if clip is not None:
                near = torch.minimum(torch.maximum(value, old - clip), old + clip)
                error = torch.maximum(error, (near - target) ** 2)
            losses.append(0.5 * error)
        note(seen, value_loss=torch.cat(losses))
        return torch.cat(losses).mean()

    def averaged(self) -> Network:
        """The policy with the moving average of its trained weights."""
        own = {name: weight.detach().clone() for name, weight in self.policy.trained.items()}
        with torch.no_grad():
            for name, weight in self.policy.trained.items():
                weight.copy_(self._average[name])
            found = self.policy.step_back()
            for name, weight in self.policy.trained.items():
                weight.copy_(own[name])
        return found


def kl_estimate(difference: Any, estimator: str) -> Any:
    """k1, k2 and k3 of d = log pi - log pi_ref at tokens drawn from pi; r = pi_ref / pi = exp(-d)."""
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    exp = torch.exp if isinstance(difference, Tensor) else np.exp
    return exp(-difference) - 1 + difference


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, gae_lambda: float) -> np.ndarray:
    """A_t = sum over l of (gamma lambda)^l delta_{t + l}; the state after the last token is worth 0."""
    following = np.append(values[1:], 0.0)
    delta = rewards + gamma * following - values
    fade = (gamma * gae_lambda) ** np.arange(len(delta))
    return np.array([(fade[: len(delta) - t] * delta[t:]).sum() for t in range(len(delta))])


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """Reward of each answer less the mean of the others'."""
    return np.array([reward - np.delete(rewards, place).mean() for place, reward in enumerate(rewards)])


def group_relative(rewards: np.ndarray) -> np.ndarray:
    """(reward - mean) / deviation among the answers of a prompt."""
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)


def note(seen: dict[str, list[float]], **values: Any) -> None:
    """Remember what a step computed, token by token."""
    for name, added in values.items():
        seen.setdefault(name, []).extend(added.tolist() if isinstance(added, Tensor) else added)
