"""`compatibility: deepspeed_chat`: a preset beneath the user's keys, and DeepSpeed-Chat's formulas as loops."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.config import Plan, dumped, resolve
from rlhf.config.compatibility import PRESETS
from rlhf.config.expand import deep_merge
from rlhf.config.requirements import HYBRID_ENGINE
from rlhf.config.stages import PpoSettings
from rlhf.data.questions import Question
from rlhf.errors import UserError
from rlhf.models.loading import load_reward_backbone, load_tokenizer
from rlhf.models.scores import TokenScorer
from rlhf.ppo.experience import make_experience
from rlhf.ppo.losses import log_ratio, policy_loss, value_loss
from rlhf.ppo.reward import ReEncodedText, SameTokens
from rlhf.ppo.samples import Answer, Partition, Samples
from rlhf.ppo.scoring import Scores

PRESET = PRESETS["deepspeed_chat"]
CPU = torch.device("cpu")


def plan(**experiment: Any) -> Plan:
    config = {
        "datasets": {"pairs": {"source": {"hub": "org/pairs"}}},
        "models": {"big": {"source": {"hub": "org/big"}}, "small": {"source": {"hub": "org/small"}}},
        "defaults": {"data_path": ["pairs"], "policy": "big", "reward_model": "small"},
        "experiments": {"demo": experiment},
    }
    return resolve(config, lambda path, key: "content")


def settings_of(plan: Plan, kind: str) -> dict[str, Any]:
    (stage,) = plan.of_kind(kind)
    return dumped(stage.settings)


def leaves(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


# The preset


# Settings under which every key of the preset has an effect: adapters, and more than one step for each rollout.
ADAPTERS = {"lora_dim": 8}
IN_EFFECT = {"sft": ADAPTERS, "reward": ADAPTERS, "ppo": {"minibatches": 2, "actor": ADAPTERS, "critic": ADAPTERS}}


def test_every_value_of_the_preset_reaches_its_stage() -> None:
    resolved = plan(compatibility="deepspeed_chat", **IN_EFFECT)
    for kind, section in PRESET.items():
        settings = leaves(settings_of(resolved, kind))
        assert {key: settings[key] for key in leaves(section)} == leaves(section)


def test_constants_of_the_trainer() -> None:
    ppo = settings_of(plan(compatibility="deepspeed_chat", **IN_EFFECT), "ppo")
    constants = ("kl_coefficient", "clip_range", "value_clip_range", "reward_clip", "gamma", "gae_lambda")
    assert [ppo[key] for key in constants] == [0.1, 0.2, 0.2, 5.0, 1.0, 0.95]
    assert not any(
        ppo[key] for key in ("normalise_score", "whiten_advantages", "whiten_rewards", "missing_eos_penalty")
    )
    adam = ("adam_beta1", "adam_beta2", "adam_epsilon", "gradient_clipping", "lora_alpha")
    assert all([ppo[role][key] for key in adam] == [0.9, 0.95, 1e-8, 1.0, 1.0] for role in ("actor", "critic"))


def test_the_users_keys_win_wherever_they_are_given() -> None:
    own = {"ppo": {"kl_coefficient": 0.02, "value_clip_range": None}, "sft": {"loss_on": "completion"}}
    for resolved in (
        plan(compatibility="deepspeed_chat", **own),
        resolve(
            {
                "datasets": {"pairs": {"source": {"hub": "org/pairs"}}},
                "models": {"big": {"source": {"hub": "org/big"}}},
                "defaults": {"data_path": ["pairs"], "policy": "big", "reward_model": "big", **own},
                "experiments": {"demo": {"compatibility": "deepspeed_chat"}},
            },
            lambda path, key: "content",
        ),
    ):
        ppo = settings_of(resolved, "ppo")
        assert (ppo["kl_coefficient"], ppo["value_clip_range"], ppo["whiten_advantages"]) == (0.02, None, False)
        assert settings_of(resolved, "sft")["loss_on"] == "completion"


def test_only_the_resulting_values_are_part_of_an_id() -> None:
    named = plan(compatibility="deepspeed_chat", **IN_EFFECT)
    assert named.runs[0].stages == plan(**deep_merge(PRESET, IN_EFFECT)).runs[0].stages
    own = deep_merge(IN_EFFECT, {"ppo": {"kl_coefficient": 0.05}})
    assert plan(compatibility="deepspeed_chat", **own).runs[0].stages == plan(**deep_merge(PRESET, own)).runs[0].stages
    assert plan(**IN_EFFECT).runs[0].stages["ppo"] != named.runs[0].stages["ppo"]


def test_compatibility_can_be_swept() -> None:
    resolved = plan(sweep={"compatibility": [None, "deepspeed_chat"]})
    assert [stage.settings.score_at for stage in resolved.of_kind("ppo")] == ["eos", "before_eos"]


@pytest.mark.parametrize("value", ["deepspeed-chat", ["deepspeed_chat"]])
def test_an_unknown_program_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"experiments\.demo\.compatibility"):
        plan(compatibility=value)


# Its formulas


def answer(ids: list[int], finished: bool) -> Answer:
    return Answer(np.array(ids), np.zeros(len(ids), np.float32), finished)


SAMPLES = Samples(
    prompts=[np.array([5, 6, 7]), np.array([9, 8, 7, 6, 5]), np.array([4])],
    answers=[answer([11, 12, 2], True), answer([13, 14, 15, 16], False), answer([2], True)],
    rows=[0, 1, 2],
)
EOS, PROMPT, ANSWER = 2, 5, 4  # DeepSpeed-Chat pads prompts to the left and answers to the right, with EOS


def padded_row(row: int) -> list[int]:
    prompt, drawn = SAMPLES.prompts[row].tolist(), SAMPLES.answers[row].ids.tolist()
    return [EOS] * (PROMPT - len(prompt)) + prompt + drawn + [EOS] * (ANSWER - len(drawn))


def end_score(ids: list[int], values: list[float]) -> float:
    """`forward_value`: the value before the first EOS at or after the prompt, or at the end."""
    place = next((t for t in range(PROMPT, len(ids)) if ids[t] == EOS), len(ids))
    return values[place - 1]


def test_the_score_is_read_before_the_end(gpt2_folder) -> None:
    scorer = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=4, dropout=0.0)).eval()
    rows = np.arange(3)
    part = SAMPLES.rectangle(rows, 0, CPU)
    with torch.no_grad():
        scores = SameTokens(scorer, 0, "before_eos")(SAMPLES, rows, part)
        at_the_end = SameTokens(scorer, 0)(SAMPLES, rows, part)
        for row in range(3):
            real = [*SAMPLES.prompts[row], *SAMPLES.answers[row].ids]
            ids = torch.tensor([real])
            values = scorer(ids, torch.ones_like(ids))[0].tolist()
            padding = PROMPT - len(SAMPLES.prompts[row])
            table = [math.nan] * padding + values + [math.nan] * (PROMPT + ANSWER - padding - len(real))
            assert float(scores[row]) == pytest.approx(end_score(padded_row(row), table), abs=1e-5)
            assert float(at_the_end[row]) == pytest.approx(values[-1], abs=1e-5)
    assert not torch.allclose(scores[:1], at_the_end[:1])


def test_a_reward_model_that_reads_text_leaves_the_end_out(gpt2_folder) -> None:
    tokenizer = load_tokenizer(gpt2_folder)

    def question(row: int) -> Question:
        prompt = tokenizer.decode(SAMPLES.prompts[row])
        return Question(None, {"prompt": prompt, "own": None, "turns": None, "row": row}, "", "")

    scorers = [
        ReEncodedText(torch.nn.Linear(1, 1), tokenizer, tokenizer, None, question, at) for at in ("eos", "before_eos")
    ]
    full, before = (scorer._encode(SAMPLES, 0) for scorer in scorers)
    assert full[:-1].tolist() == before.tolist() and full[-1] == tokenizer.eos_token_id
    assert scorers[0]._encode(SAMPLES, 1).tolist() == scorers[1]._encode(SAMPLES, 1).tolist()  # a cut answer


def by_the_loop(row: int, logprobs: Any, ref: Any, values: Any, score: float) -> tuple[list[float], list[float]]:
    """Section by section as DeepSpeed-Chat computes it on the padded row; entry t is the action of token t + 1."""
    ids = padded_row(row)
    width, start = len(ids) - 1, PROMPT - 1
    action_mask = [1 if token != EOS else 0 for token in ids[1:]]
    rewards = [-0.1 * (logprobs[t] - ref[t]) for t in range(width)]
    end = start + sum(action_mask[start:]) + 1
    rewards[min(end, width) - 1] += min(max(score, -5.0), 5.0)
    value = list(values)
    for t in range(end, width):
        rewards[t] = value[t] = 0.0
    advantages, following = [0.0] * width, 0.0
    for t in reversed(range(start, width)):
        after = value[t + 1] if t < width - 1 else 0.0
        following = rewards[t] + 1.0 * after - value[t] + 1.0 * 0.95 * following
        advantages[t] = following
    return advantages[start:], [a + v for a, v in zip(advantages[start:], value[start:], strict=True)]


def test_rewards_advantages_and_returns_follow_its_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(ANSWER) < torch.tensor([[3], [4], [1]])).float()
    logprobs, ref, values = (torch.randn(3, ANSWER, generator=generator) for _ in range(3))
    score = torch.tensor([0.7, -9.0, 6.0])  # two of them are clipped
    settings = PpoSettings.model_validate(PRESET["ppo"])
    scores = Scores(
        logprobs=logprobs * mask,
        ref_logprobs=ref * mask,
        entropy=torch.zeros(3, ANSWER),
        values=values * mask,
        score=score,
        partition=Partition([]),
    )
    experience = make_experience(SAMPLES, scores, settings, settings.kl_coefficient)
    before = [0.0] * (PROMPT - 1)  # what lies in the prompt plays no part
    for row in range(3):
        tables = [before + table[row].double().tolist() for table in (logprobs, ref, values)]
        advantages, returns = by_the_loop(row, *tables, float(score[row]))
        length = len(SAMPLES.answers[row].ids)
        assert experience.returns is not None
        np.testing.assert_allclose(experience.advantages[row, :length], advantages[:length], atol=1e-5)
        np.testing.assert_allclose(experience.returns[row, :length], returns[:length], atol=1e-5)


def test_losses_of_one_micro_batch_are_its_means() -> None:
    """Its masked means are this project's sums over the count of a step, where a step is one micro-batch."""
    generator = torch.Generator().manual_seed(1)
    new, old, advantages, values, old_values, returns = (torch.randn(2, 5, generator=generator) for _ in range(6))
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    actor = critic = 0.0
    for row, column in [(r, t) for r in range(2) for t in range(5) if mask[r, t]]:
        at = (row, column)
        ratio, advantage = math.exp(float(new[at] - old[at])), float(advantages[at])
        actor += max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))
        value, ret = float(values[at]), float(returns[at])
        clipped = min(max(value, float(old_values[at]) - 0.2), float(old_values[at]) + 0.2)
        critic += 0.5 * max((value - ret) ** 2, (clipped - ret) ** 2)
    count = float(mask.sum())
    ratios = log_ratio(new, old, mask).exp()
    assert float(policy_loss(ratios, advantages, mask, 0.2)) / count == pytest.approx(actor / count, rel=1e-5)
    assert float(value_loss(values, old_values, returns, mask, 0.2)) / count == pytest.approx(critic / count, rel=1e-5)


# The hybrid engine


def test_the_hybrid_engine_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"demo\.ppo: execution\.enable_hybrid_engine: no model family works"):
        plan(ppo={"execution": {"enable_hybrid_engine": True}})


def test_the_finding_on_the_hybrid_engine_is_about_the_pinned_versions(repo_root: Path) -> None:
    """Another version of either package needs another look: docs/from-deepspeed-chat.md says what to try."""
    pins = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["dependencies"]
    for package in ("deepspeed", "transformers"):
        (version,) = (pin.split("==")[1] for pin in pins if pin.startswith(f"{package}=="))
        assert f"{package} {version}" in HYBRID_ENGINE
