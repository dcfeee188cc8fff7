"""Whether runs of a small model take one CPU or several."""

import pytest

from recommender.engine.cpus import Trial, pay


@pytest.mark.parametrize(
    ("one", "several", "expected"),
    [
        pytest.param(Trial(8.0, 8.0), Trial(4.0, 4.5), True, id="runs end sooner, and the event loop's work too"),
        pytest.param(Trial(2.0, 6.4), Trial(1.0, 6.4), True, id="runs end sooner, and the event loop loses nothing"),
        pytest.param(Trial(4.0, 6.4), Trial(3.0, 7.0), False, id="what runs gain the event loop loses"),
        pytest.param(Trial(2.0, 6.4), Trial(1.8, 6.4), False, id="runs end hardly sooner"),
    ],
)
def test_several_cpus_pay_if_runs_end_sooner_and_the_event_loop_loses_nothing(
    one: Trial, several: Trial, *, expected: bool
) -> None:
    assert pay([one] * 3, [several] * 3) is expected


def test_a_disturbed_trial_does_not_decide() -> None:
    assert pay([Trial(8.0, 8.0)] * 3, [Trial(4.0, 4.5), Trial(90.0, 90.0), Trial(4.0, 4.5)])
