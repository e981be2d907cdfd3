"""Pictures that were damaged at random are read or refused: a sample of what `attacks/pictures.py` runs in full."""

import pytest

from attacks.pictures import attack, whole_pictures


@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_read_or_refused() -> None:
    assert {"PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"} <= whole_pictures().keys()
    outcomes, escaped = attack(2000)
    assert escaped == {}
    assert outcomes.total() == 2000 and outcomes["JPEG read"] > 10 and outcomes["PNG refused"] > 10
