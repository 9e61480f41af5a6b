from pathlib import Path

import pytest
import yaml

from kdscale.config import Shape
from kdscale.errors import KdscaleError
from kdscale.models.shapes import check_shape

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "students").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_shapes_can_be_built_and_are_named_after_their_file(path):
    shape = Shape(**yaml.safe_load(path.read_text()))
    check_shape(shape)
    assert shape.name == path.stem == f"{shape.layers}l-{shape.hidden}"


def test_shapes_are_shipped():
    assert len(SHIPPED) >= 6


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape("x", 2, 312, 16, 1200), "16 heads do not divide hidden size 312; set heads to 13"),
        (Shape("x", 0, 128, 4, 512), "layers must be at least 1"),
        (Shape("x", 2, 128, 0, 512), "heads must be at least 1"),
        (Shape("x", 2, 128, 4, -1), "intermediate must be at least 1"),
    ],
)
def test_shapes_that_cannot_be(shape, message):
    with pytest.raises(KdscaleError, match=message):
        check_shape(shape)
