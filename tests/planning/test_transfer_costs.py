"""What a plan says of transfer collections: their size is not known, so they cost nothing."""

import pytest

from kdscale.experiment.load import load_config
from kdscale.planning.model import CostModel
from tests.planning.conftest import machines, make_counts
from tests.worlds.world import make_config, make_encoder


@pytest.mark.parametrize("name", ["far", "2"])
def test_a_transfer_is_never_taken_for_a_teacher(tmp_path, name):
    """With two teachers the second's tokens of the transfer were charged as those of the data."""
    path = make_config(tmp_path)
    teachers = f"ensemble=[{{model: {make_encoder(tmp_path / 'other', words=50)}}}]"
    transfer = f"transfer={{{name}: {{source: {{type: beir, path: {tmp_path / 'beir'}}}}}}}"
    plain, with_transfer = (
        {
            stage.name: stage.total
            for stage in CostModel(load_config(path, given), make_counts(), machines()).stages()
        }
        for given in ([teachers], [teachers, transfer])
    )
    of_transfer = {f"dataset@{name}", f"tokens@{name}", f"tokens@{name}:2"}
    assert with_transfer.keys() - plain.keys() == of_transfer
    assert all(with_transfer[step] == 0 for step in of_transfer)
    assert {step: with_transfer[step] for step in plain} == plain
    assert plain["tokens:2"] > 0
