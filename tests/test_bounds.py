import dataclasses
import typing
from types import SimpleNamespace
from typing import Annotated, get_args, get_origin

import pytest

from kdscale.bounds import Bound, Count, Positive, Share, check_options
from kdscale.config import Config
from kdscale.errors import KdscaleError
from kdscale.experiment.load import load_config
from kdscale.sweep.spec import Section


def unbounded(hint, where):
    """The dotted paths of the numbers below a type that have no bound, groups and all."""
    if get_origin(hint) is Annotated:
        inner, *rest = get_args(hint)
        if any(isinstance(bound, Bound) for bound in rest):
            return
        yield from unbounded(inner, where)
    elif dataclasses.is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint, include_extras=True).items():
            yield from unbounded(inner, f"{where}.{name}")
    elif hint in (int, float):
        yield where
    else:
        for inner in get_args(hint):
            yield from unbounded(inner, where)


def numbers(hint, where):
    """(dotted path, type, bound) of every number of a config that stands by itself."""
    if get_origin(hint) is Annotated:
        inner, *rest = get_args(hint)
        bounds = [(where, inner, said) for said in rest if isinstance(said, Bound)]
        yield from bounds or numbers(inner, where)
    elif dataclasses.is_dataclass(hint):
        for name, inner in typing.get_type_hints(hint, include_extras=True).items():
            yield from numbers(inner, f"{where}.{name}".lstrip("."))
    elif type(None) in get_args(hint):
        yield from numbers(get_args(hint)[0], where)


def test_every_number_of_a_config_and_of_a_sweep_has_a_bound():
    assert list(unbounded(Config, "config")) == []
    assert list(unbounded(Section, "sweep")) == []


def test_the_walk_finds_a_number_without_a_bound():
    made = dataclasses.make_dataclass("Made", [("a", dict[str, list[int]]), ("b", float | None)])
    assert list(unbounded(made, "made")) == ["made.a", "made.b"]


@pytest.mark.parametrize(
    ("key", "kind", "bound"), [n for n in numbers(Config, "") if not n[0].startswith("source.")]
)
def test_each_number_is_refused_outside_of_its_bound(tmp_path, key, kind, bound):
    """Wherever a config is loaded: for doctor, --dry-run, run, and with --set."""
    (tmp_path / "c.yaml").write_text("")
    lower = bound.above if bound.above is not None else bound.least - 1
    for value in (lower, ".nan", "-.inf"):
        with pytest.raises(KdscaleError, match=f"^{key}: ") as caught:
            load_config(tmp_path / "c.yaml", [f"{key}={kind(value) if value == lower else value}"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.train.max_steps=0", r"teacher\.train\.max_steps: 1 or more, not 0"),
        ("ranker.train.max_steps=-5", r"ranker\.train\.max_steps: 1 or more, not -5"),
        ("lm.train.epochs=0", r"lm\.train\.epochs: above 0, not 0\.0"),
        ("prepare.max_queries={dev: 0}", r"prepare\.max_queries\.dev: 1 or more, not 0"),
        ("prepare.max_block_tokens=0", r"prepare\.max_block_tokens: 1 or more, not 0"),
        ("ranker.max_queries=0", r"ranker\.max_queries: 1 or more, not 0"),
        ("evaluate.batch_tokens=0", r"evaluate\.batch_tokens: 1 or more, not 0"),
        ("evaluate.alpha=1", r"evaluate\.alpha: below 1, not 1\.0"),
        ("ranker.train.warmup=1.5", r"ranker\.train\.warmup: at most 1, not 1\.5"),
        ("ranker.train.zero_stage=3", r"ranker\.train\.zero_stage: at most 2, not 3"),
        ("ranker.soft_losses={lce: -1}", r"ranker\.soft_losses\.lce: 0 or more, not -1\.0"),
        ("ranker.soft_losses={lce: 0}", r"ranker\.soft_losses: every weight is 0"),
        ("lm.layer_map=[0, 1]", r"lm\.layer_map\[0\]: 1 or more, not 0"),
        ("prepare.bm25_b=75", r"prepare\.bm25_b: at most 1, not 75\.0"),
        ("seed=4294967296", r"seed: at most 4294967295, not 4294967296"),
        ("ranker.train.lr=1e999", r"ranker\.train\.lr: a finite number, not inf"),
    ],
)
def test_a_number_out_of_bounds_is_one_line_with_key_bound_and_value(tmp_path, override, message):
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(KdscaleError, match=f"^{message}"):
        load_config(tmp_path / "c.yaml", [override])


def test_a_weight_of_zero_beside_another_is_taken(tmp_path):
    (tmp_path / "c.yaml").write_text("ranker: {soft_losses: {listwise_kl: 1, lce: 0}}")
    assert load_config(tmp_path / "c.yaml").ranker.soft_losses["lce"] == 0


def test_an_option_out_of_bounds_is_named():
    args = SimpleNamespace(depth=None, batch_tokens=3, price_per_hour=float("nan"), share=1.0)
    check_options(args, depth=Count, batch_tokens=Count, share=Share)
    with pytest.raises(KdscaleError, match="--price-per-hour: a finite number, not nan"):
        check_options(args, price_per_hour=Positive)
