import re
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
    # LAYERSl-HIDDEN, then the feed-forward width where it is not about four times hidden, and the
    # width of the embeddings where it is not hidden.
    name = f"{shape.layers}l-{shape.hidden}"
    if not 3.5 < shape.intermediate / shape.hidden < 4.5:
        name += f"-f{shape.intermediate}"
    if shape.embedding:
        name += f"-e{shape.embedding}"
    assert shape.name == path.stem == name


def flops(layers, hidden, intermediate, embedding=0, length=128):
    """Of a ranker's forward, by hand: layers, head, and the map from narrow embeddings."""
    layer = 8 * length * hidden**2 + 4 * length * hidden * intermediate + 4 * length**2 * hidden
    return layers * layer + 2 * hidden**2 + 2 * hidden + 2 * length * embedding * hidden


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_arithmetic_that_a_shape_states_is_its_own(path):
    shape = Shape(**yaml.safe_load(path.read_text()))
    own = flops(shape.layers, shape.hidden, shape.intermediate, shape.embedding)
    text = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines())
    stated = re.search(r"Forward of a 128-token pair: ([\d,]+) MFLOP", text).group(1)
    assert int(stated.replace(",", "")) == round(own / 1e6)
    fewer = re.search(r"([\d.]+) times fewer than MiniLM's 2,869", text)
    if fewer:
        assert float(fewer.group(1)) == round(flops(6, 384, 1536) / own, 1)


def test_shapes_are_shipped():
    assert len(SHIPPED) >= 9


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape("x", 2, 312, 16, 1200), "16 heads do not divide hidden size 312; set heads to 13"),
        (Shape("x", 0, 128, 4, 512), "layers: 1 or more"),
        (Shape("x", 2, 128, 0, 512), "heads: 1 or more"),
        (Shape("x", 2, 128, 4, -1), "intermediate: 1 or more"),
        (Shape("x", 2, 128, 4, 512, 129), "embedding is 129; set it to 0 .* the hidden size 128"),
        (Shape("x", 2, 128, 4, 512, 1), "embedding is 1; set it to 0"),
        (Shape("x", 2, 128, 4, 512, -64), "embedding is -64; set it to 0"),
    ],
)
def test_shapes_that_cannot_be(shape, message):
    with pytest.raises(KdscaleError, match=message):
        check_shape(shape)
