"""A model that rests on the host: what is copied, and that it stays what it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlhf.config.stages import PpoExecution
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.offload import OffloadedModel
from rlhf.ppo import models as ppo_models
from rlhf.ppo.models import PpoModels

CUDA = torch.device("cuda")


class FakeDevice(TorchFunctionMode):
    """Stands for a GPU: what is sent to it stays in host memory, and is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[weakref.ref[Tensor]] = []
        self.page_locked = self.returned = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.pin_memory:
            self.page_locked += 1
            return args[0].clone()
        if func is torch.Tensor.to and args[1] == CUDA:
            copy = args[0].clone()
            self.sent.append(weakref.ref(copy.untyped_storage()))
            return copy
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.copy_):
            self.returned += 1
        return func(*args, **(kwargs or {}))

    def held(self) -> int:
        """Tensors that are on it now."""
        return sum(storage() is not None for storage in self.sent)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that a file does not hold among them."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "reference": lambda folder: load_policy(folder, "bf16", 0.0),
    "reward": lambda folder: load_reward_backbone(folder, "bf16", 5, 0.0),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_weights_go_to_the_device_and_nothing_comes_back(family_folder: Path, loader: str) -> None:
    model = LOADERS[loader](family_folder).eval().requires_grad_(False)
    own = tensors(model)
    before = {name: tensor.clone() for name, tensor in own.items()}
    ids = torch.tensor([[5, 6, 7]])
    expected = model(ids).logits
    fake, rounds = FakeDevice(), 20
    with fake:
        offloaded = OffloadedModel(model, CUDA)
        resting = {name: tensor.data_ptr() for name, tensor in own.items()}
    for _ in range(rounds):
        with fake, offloaded.in_use():
            assert fake.held() == len(own)
            assert not {tensor.data_ptr() for tensor in own.values()} & set(resting.values())
        assert fake.held() == 0
        assert {name: tensor.data_ptr() for name, tensor in own.items()} == resting
    assert (fake.page_locked, len(fake.sent), fake.returned) == (len(own), rounds * len(own), 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())
    assert torch.equal(model(ids).logits, expected)


def test_scoring_takes_both_models_to_the_device_and_none_back(
    gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_models, "device", lambda: CUDA)
    reference, reward = (load(gpt2_folder).requires_grad_(False) for load in LOADERS.values())
    stage: Any = SimpleNamespace(execution=PpoExecution(offload_reference_model=True, offload_reward_model=True))
    unused = dict.fromkeys(("critic", "reward_scorer", "policy", "adapted", "tokenizer"))
    with FakeDevice() as fake:
        offloaded = ppo_models._offloaded(stage, reference, reward)
        actor: Any = SimpleNamespace(evaluation=nullcontext, engine=None)
        models = PpoModels(actor=actor, reference=reference, offloaded=offloaded, **unused)
        for _ in range(3):
            with models.scoring():
                assert fake.held() == len(tensors(reference)) + len(tensors(reward))
    assert (fake.held(), fake.returned) == (0, 0)


def test_tied_weights_stay_tied(gpt2_folder: Path) -> None:
    model = load_policy(gpt2_folder, "fp32").requires_grad_(False)
    pair = model.transformer.wte.weight, model.lm_head.weight
    assert pair[0] is pair[1]
    with FakeDevice():
        offloaded = OffloadedModel(model, CUDA)
        with offloaded.in_use():
            assert model.lm_head.weight is model.transformer.wte.weight is pair[0]
    assert model.lm_head.weight is model.transformer.wte.weight is pair[0]


def test_a_failure_inside_leaves_the_model_at_rest(gpt2_folder: Path) -> None:
    model = load_policy(gpt2_folder, "fp32").requires_grad_(False)
    with FakeDevice() as fake:
        offloaded = OffloadedModel(model, CUDA)
        with pytest.raises(ZeroDivisionError), offloaded.in_use():
            raise ZeroDivisionError
        assert fake.held() == 0


def test_where_the_device_is_the_host_nothing_is_copied(gpt2_folder: Path) -> None:
    model = load_policy(gpt2_folder, "fp32").requires_grad_(False)
    places = [tensor.data_ptr() for tensor in tensors(model).values()]
    with OffloadedModel(model, torch.device("cpu")).in_use():
        assert [tensor.data_ptr() for tensor in tensors(model).values()] == places


@pytest.mark.gpu
def test_on_a_gpu_the_scores_are_those_of_a_model_that_stays_there(gpt2_folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    ids = torch.tensor([[5, 6, 7]], device="cuda")
    resident, moved = (load_policy(gpt2_folder, "bf16", 0.0).eval().requires_grad_(False) for _ in range(2))
    expected = resident.to("cuda")(ids).logits
    offloaded = OffloadedModel(moved, torch.device("cuda"))
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        with offloaded.in_use():
            assert torch.equal(moved(ids).logits, expected)
    assert all(tensor.is_pinned() for tensor in tensors(moved).values())
    assert torch.cuda.memory_allocated() == before
