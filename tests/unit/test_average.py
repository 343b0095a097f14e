"""The moving average of weights against its closed form."""

import torch
from torch import nn

from rlhf.ppo.average import WeightAverage


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
