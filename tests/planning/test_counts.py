from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.experiment.load import load_config
from kdscale.planning.counts import counts_of

ROOT = Path(__file__).parents[2]


def test_counts_of_the_config_of_a_beir_folder(config_file):
    counts = counts_of(load_config(config_file), {}, None, None)
    assert (counts.passages, counts.queries) == (160, {"train": 60, "dev": 10, "test": 20})
    assert counts.pairs == 60 * 5 and "what the source's files hold" in counts.source
    capped = load_config(config_file, ["prepare.max_queries={train: 7}"])
    assert counts_of(capped, {}, None, None).queries["train"] == 7


def test_counts_of_ms_marco_are_the_published_ones():
    config = load_config(ROOT / "configs" / "msmarco.yaml")
    counts = counts_of(config, {}, None, None)
    assert counts.passages == 8_841_823 and counts.queries["train"] == 502_939
    assert counts.pairs == 502_939 * 32


def test_where_nothing_tells_how_much_there_is(config_file, capsys):
    source = "source={type: ir_datasets, ids: {train: a, test: b}}"
    config = load_config(config_file, [source])
    with pytest.raises(KdscaleError, match="give --passages and --queries"):
        counts_of(config, {}, None, None)
    counts = counts_of(config, {}, 5_000, 100)
    assert (counts.passages, counts.queries["train"]) == (5_000, 100)
