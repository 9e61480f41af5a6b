import numpy as np
import pytest

from kdscale.errors import KdscaleError
from kdscale.evaluation.ensemble import Scale, combine, read_scales, write_scales

FIRST = np.array([1.0, 3.0, 5.0, 7.0], dtype=np.float32)  # mean 4, variance 5
SECOND = np.array([-10.0, 0.0, 0.0, 10.0], dtype=np.float32)  # mean 0, variance 50


def test_the_scale_is_mean_and_standard_deviation():
    assert Scale.of(FIRST, "scores") == Scale(4.0, pytest.approx(5**0.5))
    assert Scale.of(SECOND, "scores:2") == Scale(0.0, pytest.approx(50**0.5))


def test_the_mean_on_the_first_scale_by_hand():
    scales = [Scale.of(FIRST, "scores"), Scale.of(SECOND, "scores:2")]
    # -10 is -10/sqrt(50) of its deviations, which are -10/sqrt(10) = -3.1623 on the first scale.
    far = 10 / 10**0.5
    expected = [(1 + 4 - far) / 2, (3 + 4) / 2, (5 + 4) / 2, (7 + 4 + far) / 2]
    assert combine([FIRST, SECOND], scales).tolist() == pytest.approx(expected)


def test_a_teachers_zero_and_unit_do_not_matter():
    def joined(second):
        return combine([FIRST, second], [Scale.of(FIRST, "a"), Scale.of(second, "b")])

    np.testing.assert_allclose(joined(SECOND), joined(100 + 30 * SECOND), rtol=1e-6)
    np.testing.assert_allclose(joined(2 + 3 * FIRST), FIRST, rtol=1e-6)


def test_one_teacher_is_itself():
    np.testing.assert_allclose(combine([FIRST], [Scale.of(FIRST, "scores")]), FIRST, rtol=1e-7)


def test_a_teacher_that_gives_one_score_is_refused():
    with pytest.raises(KdscaleError, match=r"scores:2 are all 2\.5: that teacher tells no pair"):
        Scale.of(np.full(3, 2.5, dtype=np.float32), "scores:2")


def test_scales_are_read_as_they_were_written(tmp_path):
    scales = [Scale(0.1, 1 / 3), Scale(-2.0, 1e-7)]
    write_scales(tmp_path, scales)
    assert read_scales(tmp_path) == scales
