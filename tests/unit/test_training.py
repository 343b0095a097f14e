"""The losses of SFT and reward training, and the engine: cutting a step into pieces must not change it."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch

from rlhf.config.stages import SftSettings
from rlhf.data.batching import MicroBatch, micro_batches
from rlhf.errors import UserError
from rlhf.models.loading import dropout_keys, load_policy, load_reward_backbone
from rlhf.models.lora import add_lora
from rlhf.models.scores import TokenScorer
from rlhf.training.engine import EngineSettings, LazyLoss, Trainer, parameter_groups
from rlhf.training.reward import GroupPreference, pair_loss, score_statistics
from rlhf.training.sft import AnswerLikelihood, collate_answers
from rlhf.training.supervised import mean_loss, steps_per_epoch
from rlhf.training.weights import plain_weights
from tests.specifications import changed

# A large epsilon: Adam would blow up the rounding noise of gradients that are exactly 0 (key biases).
OPTIMIZATION = SftSettings(learning_rate=1e-2, lr_scheduler_type="constant", adam_epsilon=1e-3)


def engine_settings(**changes) -> EngineSettings:
    settings = {
        "zero_stage": 0,
        "dtype": "fp32",
        "micro_batch_size": 1,
        "offload": False,
        "gradient_checkpointing": False,
        "overrides": {},
    }
    return EngineSettings(**(settings | changes))


def lazy_losses(trainer, objective, corpus, share, count) -> list[LazyLoss]:
    """The losses of micro-batches, each a part of the mean over `count`."""

    def loss_of(micro: MicroBatch) -> torch.Tensor:
        return objective.loss(trainer.engine, corpus, micro.rows)[0] * (micro.weight / count)

    return [partial(loss_of, micro) for micro in share]


def train(model, corpus, micro_size, steps=3, objective=None, **changes) -> tuple[list[float], list[torch.Tensor]]:
    """A few steps on all rows; returns gradient norms and final weights."""
    objective = objective or AnswerLikelihood()
    trainer = Trainer(model, OPTIMIZATION, engine_settings(micro_batch_size=micro_size, **changes), steps)
    rows = np.arange(len(corpus))
    count = objective.count(corpus, rows)
    norms = []
    for _ in range(steps):
        share = micro_batches(rows, objective.lengths(corpus), micro_size, 0, 1)
        norms.append(trainer.step(lazy_losses(trainer, objective, corpus, share, count)))
    if changes.get("zero_stage") == 3:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return norms, [parameter.detach().clone() for parameter in model.parameters()]
    return norms, [parameter.detach().clone() for parameter in model.parameters()]


def test_only_answer_tokens_are_learnt_and_eos_is_one_of_them():
    ids, mask, answer = collate_answers([(np.array([5, 1, 7]), np.array([8, 1])), (np.array([4]), np.array([1]))], 0)
    assert ids.tolist() == [[5, 1, 7, 8, 1], [4, 1, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert answer.tolist() == [[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]


def test_sft_loss_is_the_mean_over_answer_tokens(family_folder, list_corpus, group):
    model = load_policy(family_folder, "fp32").eval()
    total = tokens = 0.0
    with torch.no_grad():
        for row in range(len(list_corpus)):
            prompt, answer = list_corpus.prompt(row), list_corpus.chosen(row)
            ids = torch.from_numpy(np.concatenate([prompt, answer]))[None]
            logprobs = model(ids).logits[0].double().log_softmax(-1)
            total -= sum(float(logprobs[len(prompt) + t - 1, token]) for t, token in enumerate(answer))
            tokens += len(answer)
        for batch_size in (1, 5, 16):
            loss = mean_loss(model, AnswerLikelihood(), list_corpus, batch_size)["loss"]
            assert loss == pytest.approx(total / tokens, rel=1e-5)


def test_pair_loss_is_bradley_terry():
    chosen, rejected = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.3])
    for margins in ((0.0, 0.0), (0.5, 2.0)):
        pairs = zip((1.0, -0.5), (0.2, 0.3), margins, strict=True)
        expected = [-math.log(1 / (1 + math.exp(-(c - r - m)))) for c, r, m in pairs]
        assert pair_loss(chosen, rejected, torch.tensor(margins)).tolist() == pytest.approx(expected, rel=1e-6)


def scores_alone(scorer, corpus) -> list[float]:
    """Score of every answer at its EOS, one forward pass each."""
    scores = []
    with torch.no_grad():
        for row in range(len(corpus)):
            for answer in corpus.answers(row):
                ids = torch.from_numpy(np.concatenate([corpus.prompt(row), answer]))[None]
                assert int(ids[0, -1]) == 1
                scores.append(float(scorer.model.score(scorer.body(ids).last_hidden_state)[0, -1, 0]))
    return scores


def test_scores_are_read_at_the_eos(gpt2_folder, group_corpus):
    scorer = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=0)).eval()
    with torch.no_grad():
        scores = GroupPreference().scores(scorer, group_corpus, np.arange(10))
    assert scores.tolist() == pytest.approx(scores_alone(scorer, group_corpus), abs=1e-5)


def test_score_statistics_count_every_answer_once(gpt2_folder, group_corpus, group):
    scorer, objective = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=0)).eval(), GroupPreference()
    scores = np.array(scores_alone(scorer, group_corpus))
    assert len(scores) == 2 + 4 + 3 + 5 + 2 + 4 + 3 + 5 + 2 + 4
    mean, std = score_statistics(scorer, group_corpus, objective, batch_size=3)
    assert mean == pytest.approx(scores.mean(), abs=1e-5)
    assert std == pytest.approx(scores.std(), abs=1e-5)
    scorer.model.score.weight.data.zero_()
    with pytest.raises(UserError, match="same score"):
        score_statistics(scorer, group_corpus, objective, batch_size=3)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_accumulation_does_not_change_a_step(gpt2_folder, list_corpus, group, zero_stage):
    """One micro-batch of sixteen uneven rows, or sixteen of one: the same weights."""
    whole = train(load_policy(gpt2_folder, "fp32"), list_corpus, 16, zero_stage=zero_stage)
    pieces = train(load_policy(gpt2_folder, "fp32"), list_corpus, 1, zero_stage=zero_stage)
    np.testing.assert_allclose(whole[0], pieces[0], rtol=1e-4)
    for a, b in zip(whole[1], pieces[1], strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_a_step_equals_plain_pytorch(gpt2_folder, list_corpus, group):
    model, plain = load_policy(gpt2_folder, "fp32"), load_policy(gpt2_folder, "fp32").train()
    norms, weights = train(model, list_corpus, 4)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    objective, rows = AnswerLikelihood(), np.arange(16)
    for norm in norms:
        loss = objective.loss(plain, list_corpus, rows)[0] / objective.count(list_corpus, rows)
        loss.backward()
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)), rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(weights, plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_gradient_checkpointing_changes_nothing(gpt2_folder, list_corpus, group):
    plain = train(load_policy(gpt2_folder, "fp32"), list_corpus, 4)
    saved = train(load_policy(gpt2_folder, "fp32"), list_corpus, 4, gradient_checkpointing=True)
    assert plain[0] == saved[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], saved[1], strict=True))


def test_reward_training_ranks_what_it_was_shown(gpt2_folder, list_corpus, group):
    scorer = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=0))
    objective = GroupPreference()
    before = mean_loss(scorer, objective, list_corpus, 8)
    train(scorer, list_corpus, 8, steps=30, objective=objective)
    after = mean_loss(scorer, objective, list_corpus, 8)
    assert after["loss"] < 0.5 * before["loss"]
    assert objective.summary(after)["accuracy"] == 1.0


def test_biases_and_norms_are_not_decayed(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32")
    groups = parameter_groups(model, changed(OPTIMIZATION, weight_decay=0.1))
    by_decay = {group["weight_decay"]: group["params"] for group in groups}
    assert {parameter.ndim for parameter in by_decay[0.0]} == {1}
    assert {parameter.ndim for parameter in by_decay[0.1]} == {2}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


PATTERNS = {"gpt2": "h.", "opt": "decoder.layers.", "llama": "layers."}


def test_lora_trains_adapters_and_merges_into_a_plain_model(family_folder, list_corpus, group):
    model = load_policy(family_folder, "fp32")
    pattern = PATTERNS[family_folder.name]
    settings = changed(OPTIMIZATION, lora_dim=4, lora_module_name=pattern, only_optimize_lora=True)
    names = {name for name, _ in model.named_parameters()}
    add_lora(model, settings, "sft")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    train(model, list_corpus, 8)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = model.eval()(ids).logits
    plain = load_policy(family_folder, "fp32").eval()
    plain.load_state_dict(plain_weights(model, keep=True))
    assert {name for name, _ in plain.named_parameters()} == names
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, expected, atol=1e-4)
        assert torch.allclose(model(ids).logits, expected, atol=1e-4)  # saving leaves it as it was


def test_lora_leaves_embeddings_and_norms_trainable_unless_told(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32")
    add_lora(model, changed(OPTIMIZATION, lora_dim=4, lora_module_name="h."), "sft")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.endswith("base_layer.weight") for name in frozen)


def test_a_score_head_always_trains(gpt2_folder):
    model = load_reward_backbone(gpt2_folder, "fp32", seed=0)
    settings = changed(OPTIMIZATION, lora_dim=4, lora_module_name="h.", only_optimize_lora=True)
    add_lora(model, settings, "reward")
    assert model.score.weight.requires_grad


def test_a_lora_pattern_that_matches_nothing_is_refused(gpt2_folder):
    with pytest.raises(UserError, match=r"sft\.lora_module_name: 'decoder\.layers\.' matches no linear module"):
        add_lora(load_policy(gpt2_folder, "fp32"), changed(OPTIMIZATION, lora_dim=4), "sft")


def test_dropout_override_reaches_every_rate(family_folder):
    model = load_policy(family_folder, "fp32", dropout=0.25)
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates <= {0.25}
    assert {getattr(model.config, name) for name in dropout_keys(model.config)} == {0.25}


def test_damaged_folders_are_refused(gpt2_folder):
    from safetensors.torch import load_file, save_file

    weights = gpt2_folder / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 weight.* missing"):
        load_policy(gpt2_folder, "fp32")
    with pytest.raises(UserError, match="1 weight.* missing"):
        load_reward_backbone(gpt2_folder, "fp32", seed=0)


def test_steps_per_epoch_counts_the_smaller_last_batch():
    assert [steps_per_epoch(rows, 4) for rows in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_models_are_not_shared_between_runs(gpt2_folder):
    first, second = load_policy(gpt2_folder, "fp32"), load_policy(gpt2_folder, "fp32")
    state = copy.deepcopy(second.state_dict())
    with torch.no_grad():
        next(first.parameters()).add_(1.0)
    assert all(torch.equal(state[name], value) for name, value in second.state_dict().items())
