"""Named random draws: distinct by every part of the name, independent of the split of a batch, no global state."""

import itertools

import numpy as np
import torch

from dpdmd.utils.rng import derive_seed, integers_per_sample, normal_per_sample, numpy_generator, torch_generator

NAMES = list(itertools.product((0, 1), ("start noise", "score noise"), (0, 1, 10), (0, 1, 10)))


def test_known_seeds():
    """If the hash changed, every run would change, and every resumed run would differ, without an error."""
    assert derive_seed(0, "start noise", 0, 0) == 5820567302513041028
    assert derive_seed(7, "score time", 12, 3) == 7356052488116409685
    assert derive_seed(0, "picture") == 393162009040470462
    # The hash decides the stream; how a library turns it into normals may differ in the last digits.
    known = torch.tensor([[1.2887583, -1.4011252, -0.7172909]])
    torch.testing.assert_close(normal_per_sample((3,), 0, "start noise", 0, [0]), known, rtol=0, atol=1e-6)


def test_every_part_of_the_name_counts():
    """Sums such as seed + step collide. (1, 10) and (11, 0), or parts such as "1:1", must not collide either."""
    seeds = [derive_seed(seed, purpose, step, sample) for seed, purpose, step, sample in NAMES]
    assert len(set(seeds)) == len(NAMES)
    assert derive_seed(0, "a", 1, 11) != derive_seed(0, "a", 11, 1)
    assert derive_seed(0, "a", 1) != derive_seed(0, "a", 1, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch.Generator and numpy both take


def test_streams_are_uncorrelated():
    """Draws of different names must be independent noise, not shifted copies: pairwise correlations stay near 0."""
    draws = torch.stack([normal_per_sample((4096,), a, b, c, [d])[0] for a, b, c, d in NAMES])
    correlation = torch.corrcoef(draws) - torch.eye(len(NAMES))
    # 630 pairs, each of deviation 1/sqrt(4096) = 0.0156: five deviations are exceeded by chance once in 3,000 tries,
    # and the draws are fixed.
    assert correlation.abs().max() < 5 / 64


def test_a_split_batch_draws_the_same():
    """Noise belongs to a sample, not to its place in a micro-batch: 4 = 2 + 2 = any order, for both kinds of draw."""
    whole = normal_per_sample((2, 3), 5, "start noise", 9, range(4))
    halves = [normal_per_sample((2, 3), 5, "start noise", 9, samples) for samples in ([0, 1], [2, 3])]
    assert torch.equal(whole, torch.cat(halves))
    assert torch.equal(whole.flip(0), normal_per_sample((2, 3), 5, "start noise", 9, [3, 2, 1, 0]))
    times = integers_per_sample(1000, 5, "score time", 9, range(4))
    assert times.tolist() == [integers_per_sample(1000, 5, "score time", 9, [i]).item() for i in range(4)]
    assert len(set(times.tolist())) == 4


def test_the_same_name_repeats_and_another_step_does_not():
    """A resumed run relies on the first, training on the second."""
    first, again = (normal_per_sample((8,), 1, "start noise", 2, [3]) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, normal_per_sample((8,), 1, "start noise", 3, [3]))
    assert numpy_generator(1, "a", 2).integers(10**9) == numpy_generator(1, "a", 2).integers(10**9)
    assert numpy_generator(1, "a", 2).integers(10**9) != numpy_generator(1, "a", 3).integers(10**9)


def test_normal_moments():
    """Mean 0, variance 1, fourth moment 3, fp32. A wrong scale would shift all noise levels."""
    draws = normal_per_sample((1000,), 0, "moments", 0, range(100))
    assert draws.shape == (100, 1000) and draws.dtype == torch.float32
    # 1e5 draws: deviations of the estimates are .0032, .0045 and .031; limits at four of them.
    assert abs(draws.mean()) < 0.013
    assert abs(draws.var() - 1) < 0.018
    assert abs((draws**4).mean() - 3) < 0.125


def test_integers_cover_their_range_evenly():
    """All of [0, high) and nothing else. A time index that is never drawn would be a noise level without training."""
    counts = torch.bincount(integers_per_sample(10, 0, "score time", 0, range(2000)), minlength=10)
    assert len(counts) == 10
    assert (counts - 200).abs().max() < 4 * 13.5  # binomial deviation sqrt(2000 x .1 x .9) = 13.4


def test_global_state_is_neither_read_nor_changed():
    """A draw that touched the global generators would depend on what the libraries drew before it."""

    def draw() -> tuple[list, list, float]:
        normal, integer = normal_per_sample((4,), 0, "a", 0, [0]), integers_per_sample(9, 0, "a", 0, [0])
        return normal.tolist(), integer.tolist(), numpy_generator(0, "a").random()

    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist()
    torch.manual_seed(1)
    np.random.seed(1)
    first = draw()
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == expected
    assert first == draw()


def test_generators_of_one_name_do_not_share_a_stream():
    """Drawing from one of two generators with the same name does not advance the other."""
    one, two = torch_generator(0, "a"), torch_generator(0, "a")
    torch.randn(5, generator=one)
    assert torch.equal(torch.randn(2, generator=two), torch.randn(2, generator=torch_generator(0, "a")))
