"""The moving average of the student's weights, by its formula."""

import torch
from torch import nn

from dpdmd.training.ema import MovingAverage


def test_a_moving_average_is_its_formula_and_gives_the_weights_back():
    network = nn.Module()
    parameter = network.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = MovingAverage(network, [parameter], 0.9)
    expected = parameter.detach().double()
    for value in (3.0, 5.0, -1.0):
        parameter.data.fill_(value)
        average.update()
        expected = 0.9 * expected + 0.1 * value
    average.update(torch.zeros(()))  # an update that was withheld
    with average.in_place():
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-6, atol=0)
        assert parameter.requires_grad
    assert parameter.tolist() == [-1.0, -1.0]
    waiting = parameter.square().sum()
    with average.in_place():
        pass
    waiting.backward()  # an exchange that is over leaves a waiting graph right
    assert parameter.grad.tolist() == [-2.0, -2.0]
