"""The moving average of weights against its closed form, and who writes it."""

import pytest
import torch
from torch import nn

from rlhf.training.weights import WeightAverage, WeightCopy
from tests.unit.ranks import Ranks


def test_the_average_follows_its_definition_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    expected = model.weight.detach().double().clone()
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        expected = 0.9 * expected + 0.1 * model.weight.detach().double()
    own, bias = model.weight.detach().clone(), model.bias.detach().clone()
    with average.in_place():
        assert torch.allclose(model.weight.double(), expected, atol=1e-6)
        assert torch.equal(model.bias, bias)
    assert torch.equal(model.weight, own)


@pytest.mark.parametrize("partitioned", [False, True])
def test_what_is_equal_on_all_ranks_is_written_once_and_partitions_by_each(tmp_path, monkeypatch, partitioned):
    ranks = Ranks(monkeypatch, 3)

    def model(value: float) -> nn.Module:
        made = nn.Linear(3, 2)
        for parameter in made.parameters():
            nn.init.constant_(parameter, value)
            if partitioned:
                parameter.ds_tensor = parameter.detach().flatten()[:1].clone()
        return made

    def value(rank: int) -> float:
        return 1.0 + (rank if partitioned else 0)

    ranks.run(lambda rank: WeightCopy(model(value(rank))).save(tmp_path))
    files = [f"rank-{rank}.safetensors" for rank in (range(3) if partitioned else [0])]
    assert sorted(path.name for path in tmp_path.iterdir()) == files

    def restored(rank: int) -> set[float]:
        copy = WeightCopy(model(0.0))
        copy.load(tmp_path)
        return {float(number) for kept in copy.copy for number in kept.flatten()}

    assert ranks.run(restored) == [{value(rank)} for rank in range(3)]
