"""Floating-point operations that a model must do for its tokens, and what cards can do in a second.

Counted are multiplications and additions of matrix products, each as one operation. Causal attention counts the half
that it needs, recomputation in the backward pass counts nothing, and neither do padding, norms and the optimizer: what
a program computes beyond this lowers its share of the peak (MFU).
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import OPTConfig

TRAINING = 3  # forward, and two products as large as each of its own in the backward pass

# Dense bf16 operations per second by the vendor's data sheets, by what the driver's name of the card contains.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def peak(card: str) -> float | None:
    """Dense bf16 operations per second of a card, by the driver's name; None where the table has none."""
    return next((rate for name, rate in PEAKS.items() if name in card), None)


@dataclass(frozen=True)
class Model:
    """What the matrix products of an OPT model depend on.

    Args:
        layers: decoder layers.
        width: of the hidden states.
        inner: width of the feed-forward layers.
        embedding: width of the embedding, which the output layer shares.
        vocabulary: rows of the embedding.
    """

    layers: int
    width: int
    inner: int
    embedding: int
    vocabulary: int

    @classmethod
    def of(cls, config: OPTConfig) -> Model:
        """From a configuration."""
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.ffn_dim,
            config.word_embed_proj_dim,
            config.vocab_size,
        )

    @property
    def body(self) -> int:
        """Weights of the body's matrices that each token is multiplied with."""
        layer = 4 * self.width**2 + 2 * self.width * self.inner
        projections = 2 * self.width * self.embedding if self.embedding != self.width else 0
        return self.layers * layer + projections

    def sequence(self, tokens: int) -> int:
        """Operations of the body for a sequence, each token attending to itself and all before it."""
        pairs = tokens * (tokens + 1) // 2
        return 2 * self.body * tokens + 4 * self.layers * self.width * pairs

    def head(self, tokens: int) -> int:
        """Operations of the output layer for so many tokens."""
        return 2 * self.embedding * self.vocabulary * tokens


def sft(model: Model, lengths: list[int], answers: list[int]) -> int:
    """Operations of a training step: sequences of so many tokens, answers of which need logits."""
    forward = sum(map(model.sequence, lengths)) + sum(map(model.head, answers))
    return TRAINING * forward


def reward(model: Model, lengths: list[int]) -> int:
    """Operations of a training step on so many sequences, two for each pair."""
    return TRAINING * sum(map(model.sequence, lengths))


@dataclass(frozen=True)
class PpoWork:
    """Operations of a PPO iteration with one pass over its rollout, by phase."""

    generate: int
    score: int
    train: int

    @property
    def all(self) -> int:
        """Of all phases."""
        return self.generate + self.score + self.train


def ppo(policy: Model, value: Model, samples: int, prompt: float, answer: float) -> PpoWork:
    """Operations of an iteration.

    Args:
        policy: shape of the policy and of its reference.
        value: shape of the value and of the reward model.
        samples: answers of the rollout.
        prompt: mean tokens of a prompt.
        answer: mean tokens of an answer.
    """
    whole, logits = policy.sequence(round(prompt + answer)), policy.head(round(answer))
    generate = policy.sequence(round(prompt + answer) - 1) + logits  # the last token is not read
    score = 2 * (whole + logits) + 2 * value.sequence(round(prompt + answer))
    train = TRAINING * (whole + logits + value.sequence(round(prompt + answer)))
    return PpoWork(samples * generate, samples * score, samples * train)
