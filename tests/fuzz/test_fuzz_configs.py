"""Config files and --set overrides: whole values in the wrong place, and YAML damaged as text."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from kdscale.config import Config
from kdscale.experiment.load import load_config, to_dict
from kdscale.experiment.steps import build_steps
from kdscale.report.sections.lineage import to_yaml
from kdscale.sweep.spec import load_sweep
from tests.fuzz.fuzzing import damage, edits, places

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).parents[2] / "configs"

TINY = b"layers: 2\nhidden: 24\nheads: 2\nintermediate: 48\n"
VALUES = [
    None, True, False, -1, 0, 1, 2**62, 2**63, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "../x", "/x", "a b", "a\nb", "\0", "\ud800", "~nobody/x", "x" * 300, "5e-5", "1_000",
    "sys", "beir", "lce", "student", "2l-192", "ranker_distill", "all", [], {}, [[]], {"a": {}},
    {"type": "beir"}, {"type": ["beir"]}, {"type": "trec", "topics": {"../x": "y"}}, ["lce"],
    {"name": "../x", "layers": 2, "hidden": 24, "heads": 2, "intermediate": 48},
    {"name": "s", "layers": 2, "hidden": 10**12, "heads": 7, "intermediate": 48},
]  # fmt: skip
TEXTS = [
    "&a [*a]", "*a", "<<: *a", "!!python/object/apply:os.system [touch ../beside/ran]",
    "!!python/name:os.system", "!!binary x", "!!timestamp x", "!!bool x", "!!int x", "!!set {a}",
    "!!omap [a]", "2001-13-45", "2001-01-01", "0b_", "0x" + "f" * 400, "1:59:59.5", ".inf", ".nan",
    "9" * 5_000, "[" * 600, "{a: " * 600, "- " * 600, "? a", "---", "...", "%YAML 9.9", "\t", "|",
    ">", "'", '"', '"\\ud800"', '"\\0"', "~", "=", "[]", "{}", "null", "yes", "1e999", "\x85",
    "&a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]"
    "\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]",
]  # fmt: skip


def plain_values() -> list[dict]:
    """The settings of the configs that we ship, every default written out."""
    paths = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.stem.startswith("sweep")]
    loaded = [to_dict(load_config(path)) for path in paths]
    return [json.loads(json.dumps(values)) for values in loaded]


def check(config: Config) -> None:
    """What loads can be planned, shown and read again, and names no file outside of its store."""
    json.dumps(to_dict(config), allow_nan=False).encode()
    to_yaml(to_dict(config)).encode()
    for step in build_steps(config).values():
        assert step.label not in ("", ".", "..") and not set(step.label) & set("/\\\0")


def change(values, changes):
    """Put each (place, value) of `changes` into the nested values."""
    ways = list(places(values))[1:]
    for place, value in changes:
        way, inner = ways[place % len(ways)], values
        try:
            for key in way[:-1]:
                inner = inner[key]
            inner[way[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took that place away


def test_configs(sandbox):
    originals = plain_values()
    target = sandbox.refill(
        {"students/tiny.yaml": b"layers: 2\nhidden: 24\nheads: 2\nintermediate: 9\n"}
    )

    def case(which, changes, students, edits, texts):
        values = copy.deepcopy(originals[which % len(originals)])
        change(values, changes)
        if students and isinstance(values, dict):
            values["students"] = students
        text = yaml.dump(values).encode(errors="surrogatepass")
        for place, piece in texts:
            lines = text.splitlines(keepends=True)
            at = place % len(lines)
            key = lines[at].partition(b":")[0]
            lines[at] = key + b": " + piece.encode() + b"\n"
            text = b"".join(lines)
        path = target / "config.yaml"
        path.write_bytes(damage(text, edits))
        config = load_config(path)
        check(config)
        path.write_text(to_yaml(to_dict(config)), encoding="utf-8")
        assert load_config(path) == config

    numbers = st.integers(0, 2**16)
    values = st.sampled_from(VALUES) | st.text(max_size=6) | st.integers() | st.floats()
    changes = st.lists(st.tuples(numbers, values), max_size=2)
    names = ["tiny", "../students/tiny", "none", "x" * 300, "\0", "/etc/passwd", "tiny.yaml", "."]
    students = st.just([]) | st.lists(st.sampled_from(names), max_size=2)
    texts = st.lists(st.tuples(numbers, st.sampled_from(TEXTS)), max_size=2)
    some = st.one_of(st.just([]), st.just([]), edits)
    sandbox.fuzz(
        "config", numbers, changes, students, some, st.one_of(st.just([]), texts), case=case
    )


def test_overrides(sandbox):
    """--set KEY=VALUE: keys of the schema and of nothing, values of YAML and of nothing."""
    config = to_dict(Config())
    keys = [".".join(map(str, way)) for way in places(config) if way]
    odd = [
        "",
        ".",
        "..",
        "a.b",
        "seed.x",
        "students.0.name",
        "\udcff",
        "a\nb",
        "x" * 5_000,
        "__class__",
    ]
    files = {
        "config.yaml": b"seed: 1\nlm: {relation_heads: 4}\n",
        "students/tiny.yaml": TINY,
    }
    path = sandbox.refill(files) / "config.yaml"

    def case(right, hostile):
        check(load_config(path, [*right, *("".join(parts) for parts in hostile)]))

    key = st.sampled_from(keys) | st.sampled_from(keys) | st.sampled_from(odd)
    value = st.one_of(
        st.sampled_from(TEXTS),
        st.text(max_size=8),
        st.integers().map(str),
        st.sampled_from(VALUES).map(lambda value: json.dumps(value)),
    )
    override = st.tuples(key, st.sampled_from(["="] * 9 + [""]), value)
    # Settings that are right, before one that may not be.
    right = ["seed=2", "lm.train.lr=5e-5", "students=[tiny]", "ranker.strategies=[finetune]"]
    before = st.lists(st.sampled_from(right), max_size=2)
    sandbox.fuzz("overrides", before, st.lists(override, max_size=1), case=case)


def test_sweeps(sandbox):
    """Search spaces: values in the wrong place, and YAML damaged as text."""
    original = json.loads(json.dumps(load_sweep(CONFIGS / "sweep.yaml").document()))
    section = original["sweep"]
    # The settings around it are the configs' own: their cases are above.
    around = {
        "students": original["students"],
        "lm": {"relation_heads": 6},
        "ranker": {"watch": {"every": 100}},  # which ASHA asks for
    }
    kinds = ["grid", "choice", "uniform", "loguniform", "when", "strategy", "gird"]

    def case(changes, renamed, edits):
        values = copy.deepcopy(section)
        change(values, changes)
        for place, kind in renamed:
            axes = values.get("space") if isinstance(values, dict) else None
            axis = list(axes.values())[place % len(axes)] if isinstance(axes, dict) else None
            if isinstance(axis, dict) and axis:
                axis[kind] = axis.pop(next(iter(axis)))
        text = yaml.dump({**around, "sweep": values}).encode(errors="surrogatepass")
        folder = sandbox.refill({"sweep.yaml": damage(text, edits)})
        sweep = load_sweep(folder / "sweep.yaml")
        json.dumps(sweep.identity(), allow_nan=False)
        for trial in sweep.trials[:20]:
            check(sweep.config(trial, None))

    numbers = st.integers(0, 2**16)
    values = st.sampled_from(VALUES) | st.text(max_size=6) | st.integers() | st.floats()
    changes = st.lists(st.tuples(numbers, values), max_size=1)
    renamed = st.lists(st.tuples(numbers, st.sampled_from(kinds)), max_size=1)
    sandbox.fuzz("sweep", changes, renamed, st.one_of(st.just([]), edits), case=case)
