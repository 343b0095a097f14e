"""The messages in docs/when-things-go-wrong.md are those that are really shown."""

import errno
import json
import logging
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from rlhf import hub
from rlhf.commands import verify
from rlhf.config import messages
from rlhf.config.requirements import Requirement, require
from rlhf.config.sources import ModelSettings
from rlhf.config.stages import TrainingExecution
from rlhf.errors import Interrupted, UserError
from rlhf.evaluation.frame import Evaluation
from rlhf.functions import load_judge
from rlhf.models import cache, loading
from rlhf.ppo.checks import RatioError, SamplingError, require_same_distribution, require_unit_ratio
from rlhf.runtime.devices import Device, require_enough
from rlhf.runtime.failure import explain
from rlhf.runtime.interruption import Interruption
from rlhf.runtime.lease import StateLease
from rlhf.runtime.progress import StageMetrics
from rlhf.training import checkpoints as checkpoints_module
from rlhf.training import stage as stage_module
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.delivery import Delivery
from rlhf.training.faults import FaultCounter

STATE = Path("state/sft/tiny-s1-1a2b3c4d")
SINCE = "2026-01-02T03:04:05+00:00"


@pytest.fixture(scope="module")
def quoted(repo_root) -> list[str]:
    """The quoted messages, without the word that a script puts in front."""
    text = (repo_root / "docs/when-things-go-wrong.md").read_text()
    lines = [line for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [re.sub("^(error|interrupted): ", "", line) for line in lines]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    STATE.mkdir(parents=True)


def message(action, kind=UserError) -> str:
    with pytest.raises(kind) as raised:
        action()
    return str(explain(raised.value)) if kind is not Interrupted else str(raised.value)


def a_users_mistake() -> str:
    needed = Requirement("defaults.sft.max_seq_len", positions=4096)
    return message(lambda: require({"linear_modules": [], "max_positions": 64}, [needed], "models.tiny"))


def what_libraries_say(monkeypatch) -> list[str]:
    Path("my-model").mkdir()
    found = []
    for module, name, error, source in (
        (hub, "find", httpx2.ConnectError("[Errno -2] Name or service not known"), {"hub": "facebook/opt-125m"}),
        (cache, "read_published", KeyError("su"), {"path": "my-model"}),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(cache, "require_model_folder", lambda *_: None)
            patch.setattr(cache, "load_as_published", lambda *_: SimpleNamespace())
            patch.setattr(module, name, fail)
            settings = ModelSettings(source=source)
            found.append(message(lambda settings=settings: cache.cache_model(settings, Path("out"), "models.base")))
    return found


def an_error_of_the_users_own(monkeypatch, caplog) -> str:
    Path("mine.py").write_text("def score(prompt, answer, finished):\n    return None + prompt\n")
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    judge = load_judge("mine:score")
    found = message(lambda: judge("p", "a", True)).replace(f"{os.getcwd()}/", "")
    caplog.clear()  # of the traceback
    return found


def failures() -> list[str]:
    host = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    lost = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:40334: Connection reset by peer"
    errors = (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(host + "8589934592 bytes."),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError(lost),
    )
    return [str(explain(error)) for error in errors]


def too_few_gpus() -> str:
    one = Device("0", "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "NVIDIA L4")
    return message(lambda: require_enough(2, [one], {"CUDA_VISIBLE_DEVICES": "0"}))


def a_silent_death() -> str:
    progress = {"status": "running", "step": 120, "total_steps": 400, "peak_rss": 3815 << 20}
    (STATE / "progress.json").write_text(json.dumps(progress))
    return messages._killed(STATE)[0]


def a_loss_that_is_not_finite() -> str:
    counter = FaultCounter(STATE, "fp32", "stop")
    return message(lambda: counter.check(3, float("nan"), None, [(0, 17), (0, 4)]), FloatingPointError)


def numbers_that_do_not_fit_together() -> list[str]:
    return [
        message(lambda: require_same_distribution(SamplingError(0.03, 0.0), "fp32", 1e-4)),
        message(lambda: require_unit_ratio(RatioError(2e-6, 1e-9), "fp32", 1e-6)),
        message(lambda: require_unit_ratio(RatioError(0.9, 0.3123), "bf16", 1e-6)),
    ]


class Constant(torch.nn.Module):
    """A model that always says the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value


def a_model_that_is_not_the_trained_one(monkeypatch, caplog) -> list[str]:
    folder, trained, saved = Path("results/sft/tiny-s1-1a2b3c4d/model"), Constant(-3.85), Constant(-3.87)
    questions = [(np.arange(9), 1)] * 2
    delivery = Delivery(
        trained, lambda _: saved, lambda model, *_: torch.full((8,), model.value), "log-probability", 1e-3, questions
    )
    lost = message(lambda: delivery.require_same(folder, delivery.expected()))
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "half_precision_error", lambda *_: 0.72)
        stage = SimpleNamespace(settings=SimpleNamespace(dtype="bf16"), _merge={})
        stage_module.TrainingStage._note_merge(stage, folder, {}, {"layer": []})
        patch.setattr(loading, "adapted_layer", lambda *_: None)
        patch.setattr(loading, "_stored", lambda *_: {"h.0.attn.c_attn.weight": torch.zeros(2, 2).bfloat16()})
        converted = message(lambda: next(loading._bases(None, folder, {"h.0.attn.c_attn": []})))
    return [lost, caplog.messages[-1], converted]


def too_few_steps() -> str:
    with StageMetrics(STATE, "sft", STATE.name, 120) as metrics:
        rows = [{"step": step, "phase": "train", "time": 0.5 * step} for step in range(1, 120)]
        (STATE / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return message(lambda: metrics.require_complete(120), RuntimeError)


def refusals() -> list[str]:
    (STATE / "holder.json").write_text(json.dumps({"host": "node8", "pid": 816, "job": None, "since": SINCE}))
    lease = StateLease(STATE)
    holder = {"host": "node7", "pid": 815, "job": "4711", "since": SINCE}
    superseded = SimpleNamespace(_folder=STATE, _lease=SimpleNamespace(compromise="evicted"))
    return [lease._refusal(holder), message(lambda: StateLease.require(superseded))]


class Nothing:
    """A part without a state."""

    def save(self, folder: Path) -> None:
        (folder / "file").write_text("x" * 100)

    def load(self, folder: Path) -> None:
        pass


def checkpoints(folder: Path, specification: str = "a", reason: str | None = None, **topology: int) -> Checkpoints:
    identity = {"specification": specification, "topology": topology}
    execution = TrainingExecution(checkpoint_steps=120, checkpoint_minutes=None)
    interruption, lease = Interruption(), SimpleNamespace(require=lambda: None)
    interruption.reason = reason
    return Checkpoints(folder / "checkpoints", identity, {"part": Nothing()}, execution, interruption, lease)


def stops() -> list[str]:
    found = []
    for reason in ("SIGTERM", "the process that started this one is gone"):
        stopped = checkpoints(STATE / reason, reason=reason, processes=1)
        found.append(message(lambda stopped=stopped: stopped.boundary({"step": 120}), Interrupted))
    return found


def a_stop_of_an_evaluation() -> str:
    asked = SimpleNamespace(reason="SIGTERM", look_for_starters=lambda: None, expect=lambda seconds: None)
    evaluation: Any = SimpleNamespace(interruption=asked, _longest=0.0, _looked_at=0.0)
    return message(lambda: Evaluation._look_up(evaluation), Interrupted)


def other_states(monkeypatch, caplog) -> list[str]:
    monkeypatch.setattr(checkpoints_module, "world_size", lambda: 1)
    monkeypatch.setattr(checkpoints_module.time, "time", lambda: 1767323045)
    made = checkpoints(STATE, processes=1, zero_stage=0)
    for step in (0, 120):
        made.boundary({"step": step})
    made.finish()
    folder = STATE / "checkpoints/000002-step-000000120"
    next((STATE / "checkpoints").iterdir()).rename(folder)
    refused = message(checkpoints(STATE, processes=2, zero_stage=2).restore)
    with monkeypatch.context() as later:
        later.setattr(checkpoints_module, "FORMAT", checkpoints_module.FORMAT + 1)
        checkpoints(STATE, processes=1, zero_stage=0).restore()
    next(STATE.glob("checkpoints-of-another-version-*")).rename(STATE / "checkpoints")
    checkpoints(STATE, specification="b", processes=1, zero_stage=0).restore()
    folder.mkdir(parents=True)
    made.restore()
    return [refused, *caplog.messages]


def a_small_disk(monkeypatch, caplog) -> str:
    usage = SimpleNamespace(free=90 << 20)
    monkeypatch.setattr(checkpoints_module.shutil, "disk_usage", lambda folder: usage)
    made = checkpoints(Path("state/ppo/tiny-s1-1a2b3c4d"), processes=1)
    made._bytes = int((120 << 20) / 1.1) + 1
    made.boundary({"step": 120})
    return caplog.messages[-1]


def damaged_results(capsys) -> list[str]:
    folder = Path("results/sft/tiny-s1-1a2b3c4d")
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_text("x")
    (folder / "manifest.json").write_text(json.dumps({"outputs": {"model/model.safetensors": "sha256:0"}}))
    found = message(lambda: verify.verify(verify.parse_args([])))
    return [capsys.readouterr().out.splitlines()[-1], found]


def test_every_message_is_quoted_as_it_is_shown(quoted, group, monkeypatch, caplog, capsys, repo_root):
    caplog.set_level(logging.WARNING)
    shown = [
        a_users_mistake(),
        *what_libraries_say(monkeypatch),
        an_error_of_the_users_own(monkeypatch, caplog),
        *failures(),
        too_few_gpus(),
        a_silent_death(),
        a_loss_that_is_not_finite(),
        *numbers_that_do_not_fit_together(),
        *a_model_that_is_not_the_trained_one(monkeypatch, caplog),
        too_few_steps(),
        *refusals(),
        *stops(),
        a_stop_of_an_evaluation(),
        *damaged_results(capsys),
        *other_states(monkeypatch, caplog),
        a_small_disk(monkeypatch, caplog),
    ]
    accepted = "{folder}: was finished after its Snakemake had ended; accepted"
    assert accepted in (repo_root / "workflow/rules/common.smk").read_text()
    shown.append(accepted.format(folder="results/sft/tiny-s1-1a2b3c4d"))
    assert {text.removeprefix("error: ") for text in shown} == set(quoted)
