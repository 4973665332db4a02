"""The judgement of a run: each measure by hand, one sentence for each fault, and silence on a good run."""

import pytest

from dpdmd.report.health import MIN_UPDATES, judge

UPDATES = 40
GOOD = {
    "loss_dmd": 0.2,
    "dmd_gradient_norm": 13.0,
    "div_gradient_norm": 100.0,
    "score_error_cosine": 0.5,
    "latent_mean": 0.01,
    "latent_std": 1.1,
    "latent_saturated": 0.002,
    "latent_mean_real": 0.0,
    "latent_std_real": 1.3,
    "anchor_error": 0.1,
}


def records(student=GOOD, first=(), last=(), fake=(0.3, 0.33), count=UPDATES):
    """A run whose first and last quarter of updates differ from `student` by these values."""
    found = []
    for index in range(count):
        changed = dict(first) if index < count // 4 else dict(last) if index >= count - count // 4 else {}
        loss = fake[0] if index < count // 2 else fake[1]
        found += [{"turn": "fake", "loss_fake": loss}] * 5 + [{"turn": "student", **student, **changed}]
    return found


def values(found):
    return {measure.name: measure.value for measure in found.measures}


def test_the_measures_of_a_good_run_are_in_their_ranges():
    health = judge(records(last={"dmd_gradient_norm": 11.7}))
    assert list(values(health).values()) == pytest.approx(
        [100 / 11.7, 0.002, 0.01 / 1.3, 1.1 / 1.3, 0.9, 1.1, 0.5, 0.1]
    )
    assert all(measure.healthy for measure in health.measures) and health.faults == ()


def test_a_measure_that_is_not_recorded_is_no_fault():
    student = {name: value for name, value in GOOD.items() if not name.startswith(("div", "anchor"))}
    health = judge(records(student))
    assert list(values(health).values()).count(None) == 2 and health.faults == ()
    old = judge(records({"dmd_gradient_norm": 13.0, "latent_std": None}))  # of an earlier version
    assert list(values(old).values()).count(None) == 6 and old.faults == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"student": GOOD | {"div_gradient_norm": 0.0}}, "The diversity loss has next to no weight"),
        ({"fake": (0.3, 0.7)}, "The fake score does not follow the student"),
        ({"last": {"dmd_gradient_norm": 18.0, "latent_std": 0.6}}, "an inverted sign"),
        ({"last": {"dmd_gradient_norm": 80.0, "latent_std": 6.0, "latent_saturated": 0.5}}, "an inverted sign"),
        ({"first": {"latent_saturated": 0.3}, "fake": (9.0, 2.0)}, "learning rate does that is far too large"),
        ({"first": {"anchor_error": 30.0}, "last": {"dmd_gradient_norm": 80.0, "latent_std": 6.0}}, "learning rate"),
        ({"last": {"score_error_cosine": 0.9}}, "No known fault, but out of the healthy range: Cosine of real and"),
    ],
)
def test_each_fault_is_named_by_one_sentence(changes, sentence):
    (fault,) = judge(records(**changes)).faults
    assert sentence in fault


def test_two_faults_are_two_sentences():
    health = judge(records(GOOD | {"div_gradient_norm": 0.0}, fake=(0.3, 0.9)))
    assert len(health.faults) == 2


def test_a_short_run_is_not_judged():
    assert judge(records(count=MIN_UPDATES - 1)) is None and judge([]) is None
    assert judge(records(count=MIN_UPDATES)) is not None


def test_ranges_in_words():
    assert [measure.range for measure in judge(records()).measures][:4] == [
        "at least 0.01",
        "at most 0.02",
        "at most 0.1",
        "0.68 to 1.1",
    ]
