"""VTAB's label rules against values worked out by hand."""

import math

import pytest

from gated_prompt.data import vtab_labels as labels
from gated_prompt.errors import DataError
from helpers.data_files import real_data


def test_svhn_ten_is_zero():
    assert [labels.svhn(i) for i in (1, 9, 10, 0)] == [1, 9, 0, 0]


def test_clevr_count():
    assert [labels.clevr_count(n) for n in range(3, 11)] == list(range(8))
    for wrong in (0, 2, 11):
        with pytest.raises(DataError, match=f"not {wrong}"):
            labels.clevr_count(wrong)


@pytest.mark.parametrize(
    ("nearest", "label"),
    [(0.1, 0), (8.0, 0), (8.001, 1), (8.5, 1), (9.0, 2), (9.2, 3), (9.5, 3), (10.0, 4), (10.01, 5), (100.0, 5)],
)
def test_clevr_distance_edges_belong_to_the_lower_class(nearest, label):
    assert labels.clevr_distance([nearest, 100.0]) == label


@pytest.mark.parametrize("depths", [[], [math.nan], [100.5], [0.0], [-1.0, 9.0]])
def test_clevr_distance_outside_the_classes_is_refused(depths):
    with pytest.raises(DataError):
        labels.clevr_distance(depths)


@pytest.mark.parametrize(
    ("depths", "label"),
    [([7.9, 50], 0), ([8.0], 0), ([8.01], 1), ([20.0, 70.0], 1), ([20.01], 2), ([999.0], 2), ([], 3), ([-5.0], 0)],
)
def test_kitti_distance(depths, label):
    assert labels.kitti_distance(depths) == label


def test_kitti_distance_of_real_label_files():
    folder = real_data("kitti_mini", "training", "label_2")
    texts = [(folder / f"{i:06d}.txt").read_text() for i in range(3)]
    # no vehicle; the nearest of a Truck at 69.44 m and a Car at 58.49 m; a Car at 34.38 m, the Misc at 8.55 m ignored
    assert [labels.kitti_distance_of_text(text) for text in texts] == [3, 2, 2]


@pytest.mark.parametrize("text", ["Car 0 0", "Car" + " 0" * 12 + " far 0"])
def test_kitti_line_that_is_no_object_is_refused(text):
    with pytest.raises(DataError, match="Line 2"):
        labels.kitti_distance_of_text("\n" + text)


def test_dsprites_index_by_enumeration():
    index = 0
    for shape in range(3):
        for scale in range(6):
            for orientation in range(40):
                for x in range(32):
                    if (orientation + x) % 7 == 0:  # every 7th row of y is enough
                        assert labels.dsprites_index(shape, scale, orientation, x, 5) == index + 5
                        found = labels.dsprites_factors(index + 5)
                        assert found == {"shape": shape, "scale": scale, "orientation": orientation, "x": x, "y": 5}
                    index += 32
    assert index == 737280


@pytest.mark.parametrize("index", [-1, 737280])
def test_dsprites_index_out_of_range(index):
    with pytest.raises(DataError, match=f"not {index}"):
        labels.dsprites_factors(index)


def test_dsprites_factor_out_of_range():
    with pytest.raises(DataError, match="orientation 0 to 39, not 40"):
        labels.dsprites_index(0, 0, 40, 0, 0)


def test_dsprites_classes():
    assert [labels.dsprites_location(x) for x in range(6)] == [0, 0, 1, 1, 2, 2]
    assert labels.dsprites_location(31) == 15
    assert [labels.dsprites_orientation(o) for o in range(40)] == [math.floor(o / 2.5) for o in range(40)]
    assert {labels.dsprites_orientation(o) for o in range(40)} == set(range(16))


def test_smallnorb():
    assert [labels.smallnorb_azimuth(a) for a in range(0, 36, 2)] == list(range(18))
    assert [labels.smallnorb_elevation(e) for e in range(9)] == list(range(9))
    for wrong in (1, 36, -2):
        with pytest.raises(DataError):
            labels.smallnorb_azimuth(wrong)
    with pytest.raises(DataError, match="elevation is 9"):
        labels.smallnorb_elevation(9)
