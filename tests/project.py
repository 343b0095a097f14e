"""One small but complete run of the workflow, shared by the tests that need real results."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from rlhf.config import Fingerprints, Plan, resolve
from tests.snakemake import snakemake, write_config

TINY = """
datasets:
  reviews:
    source: {generator: "rlhf.data.reviews:generate_pairs", arguments: {rows: 600, seed: 0}, eval_share: 0.2}
    gold_reward: rlhf.data.reviews:gold_reward
models:
  tiny:
    source: scratch
    architecture: {model_type: gpt2, n_layer: 2, n_embd: 32, n_head: 2, n_positions: 64,
                   embd_pdrop: 0.1, attn_pdrop: 0.1, resid_pdrop: 0.1}
    tokenizer: {dataset: reviews, kind: words, vocab_size: 128}
defaults:
  data_path: [reviews]
  policy: tiny
  reward_model: tiny
  sft: {global_batch_size: 32, num_train_epochs: 2, learning_rate: 5.0e-3, max_seq_len: 64, dtype: fp32}
  reward: {global_batch_size: 16, learning_rate: 2.0e-3, max_seq_len: 64, dtype: fp32}
  ppo:
    iterations: 3
    prompts_per_rollout: 16
    ppo_epochs: 2
    minibatches: 2
    max_prompt_seq_len: 20
    max_answer_seq_len: 12
    dtype: fp32
    actor: {learning_rate: 1.0e-3, num_warmup_steps: 0}
    critic: {learning_rate: 1.0e-3, num_warmup_steps: 0}
    execution: {per_device_training_batch_size: 3, per_device_generation_batch_size: 5}
  evaluation: {prompts: 16, best_of_n: 2, samples: 3}
experiments:
  tiny: {seeds: [1]}
"""


@dataclass(frozen=True)
class Project:
    """A working directory with a configuration and its plan."""

    folder: Path
    config: dict[str, Any]

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def plan(self) -> Plan:
        return resolve(self.config, Fingerprints(self.folder / "fingerprints.json").of)

    def results(self, kind: str) -> Path:
        """The results of the only run's stage of a kind."""
        return self.folder / "results" / kind / self.plan.runs[0].stages[kind]


def tiny_config() -> dict[str, Any]:
    """The configuration of the small run."""
    return yaml.safe_load(TINY)


def complete(folder: Path) -> Project:
    """A complete run in a folder."""
    project = Project(folder, tiny_config())
    write_config(folder, project.config)
    result = snakemake(folder, "--cores", "2", "--show-failed-logs", "--configfile", str(project.config_file))
    assert result.returncode == 0, result.stdout[-8000:]
    (folder / "output.txt").write_text(result.stdout)
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after a complete run: of several test processes, the first one to ask runs it, each gets a copy."""
    folder = tmp_path_factory.mktemp("projects") / "finished"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder.mkdir()
        return complete(folder)
    shared = tmp_path_factory.getbasetemp().parent / "finished"
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            running = shared.with_name("running")
            running.mkdir()  # once: a run that failed is not tried again
            complete(running)
            running.rename(shared)
    shutil.copytree(shared, folder, symlinks=True)
    return Project(folder, tiny_config())
