from pathlib import Path

import pytest

from kdscale.config import BeirSource, DocstringsSource
from kdscale.errors import KdscaleError
from kdscale.experiment.load import load_config
from kdscale.sweep.spec import load_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
BEIR = "{type: beir, path: x}"
SHAPE = "{name: s, layers: 2, hidden: 24, heads: 2, intermediate: 48}"


def _load(tmp_path, text, *overrides):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, list(overrides))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_the_configs_we_ship_load(path):
    is_sweep = path.stem.startswith("sweep")
    assert (load_sweep(path).base if is_sweep else load_config(path)).students


def test_defaults_and_types(tmp_path):
    config = _load(tmp_path, "teacher: {train: {lr: 5e-5, epochs: 2}}\nseed: 3")
    assert config.teacher.train.lr == 5e-5
    assert config.teacher.train.epochs == 2.0
    assert config.seed == 3
    assert isinstance(config.source, DocstringsSource)


def test_losses_register_themselves_with_their_papers_and_needs():
    from kdscale.losses import INTERMEDIATE_LOSSES, MASKED_LOSSES, RANKING_LOSSES, SOFT_LOSSES

    assert SOFT_LOSSES == ["pointwise_mse", "pointwise_bce", "margin_mse", "listwise_kl", "ranknet"]
    assert RANKING_LOSSES["margin_mse"].needs == {"teacher", "labels"}
    assert RANKING_LOSSES["listwise_kl"].needs == {"teacher", "temperature"}
    assert INTERMEDIATE_LOSSES["cosine"].projection == "hidden"
    assert MASKED_LOSSES["mlm_kl"].needs == {"head"} and not MASKED_LOSSES["mlm"].needs
    every = {**RANKING_LOSSES, **INTERMEDIATE_LOSSES, **MASKED_LOSSES}
    assert len(every) == 17 and all(loss.paper and loss.name == n for n, loss in every.items())


def test_measures_are_those_of_the_split_or_of_the_transfer(tmp_path):
    config = _load(
        tmp_path,
        "evaluate:\n  measures: {default: [AP, R@10], dev: [RR@10, AP], far: []}\n"
        "  primary: {default: nDCG@10, dev: AP}\n"
        f"transfer: {{far: {{source: {BEIR}}}, near: {{source: {BEIR}}}}}",
    ).evaluate
    assert config.measures_of("test") == ["nDCG@10", "AP", "R@10"]
    assert config.measures_of("dev") == ["AP", "RR@10"]
    assert config.measures_of("far/test") == ["nDCG@10"]
    assert config.measures_of("near/test") == ["nDCG@10", "AP", "R@10"]


def test_one_list_of_measures_is_that_of_every_split(tmp_path):
    config = _load(tmp_path, "evaluate: {measures: [AP], primary: RR@10}").evaluate
    assert config.measures_of("test") == config.measures_of("far/test") == ["RR@10", "AP"]


def test_an_empty_file_is_the_defaults(tmp_path):
    assert _load(tmp_path, "").seed == 13


def test_the_type_chooses_the_source(tmp_path):
    config = _load(tmp_path, "source: {type: beir, path: here}")
    assert config.source == BeirSource(path="here")


def test_set_overrides_one_setting(tmp_path):
    config = _load(tmp_path, "seed: 1", "seed=2", "lm.losses={qkv: 2}", "storage.uri=x/y")
    assert (config.seed, config.lm.losses, config.storage.uri) == (2, {"qkv": 2.0}, "x/y")


def test_set_changes_one_of_two_places_that_share_a_yaml_anchor(tmp_path):
    text = "teacher: {train: &t {lr: 0.1}}\nlm: {train: *t}"
    config = _load(tmp_path, text, "teacher.train.lr=0.5")
    assert (config.teacher.train.lr, config.lm.train.lr) == (0.5, 0.1)


def test_a_student_by_name_comes_from_the_file_beside(tmp_path):
    (tmp_path / "students").mkdir()
    (tmp_path / "students" / "tiny.yaml").write_text(
        "layers: 2\nhidden: 24\nheads: 2\nintermediate: 48"
    )
    config = _load(tmp_path, "students: [tiny]")
    assert (config.students[0].name, config.students[0].hidden) == ("tiny", 24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 1", "unknown key sede; did you mean seed"),
        ("teacher: {train: {lrr: 1}}", r"unknown key teacher\.train\.lrr; did you mean lr"),
        ("seed: hello", "seed: expected int, not 'hello'"),
        ("seed: 1.5", "seed: expected int"),
        ("seed: true", "seed: expected int"),
        ("cluster: {wait_s: 60, cpus_per_worker: 2}", "wait_s: set .* cluster.cpus_per_scorer"),
        ("cluster: {worker_labels: spot}", "cluster.worker_labels: a mapping"),
        ("teacher: 3", "teacher: a group of settings"),
        ("ensemble: minilm", "ensemble: a list"),
        ("ensemble: [{model: x, group_size: 1}]", r"ensemble\[0\]\.group_size: 2 or more, not 1"),
        ("ensemble: [{}, {losses: {ranknet: 1}}]", r"ensemble\[1\]\.losses: ranknet needs"),
        ("ensemble: [{train: {lr: 0}}]", r"ensemble\[0\]\.train\.lr: above 0, not 0"),
        ("ensemble: [{modle: x}]", r"unknown key ensemble\[0\]\.modle; did you mean model"),
        ("students: tiny", "students: a list"),
        ("students: [tiny]", "no shape 'tiny'"),
        ("students: [{name: a, layers: 2}]", "needs hidden"),
        (f"students: [{SHAPE}, {SHAPE}]", "two are named 's'"),
        (f"students: [{SHAPE.replace('heads: 2', 'heads: 5')}]", "5 heads do not divide hidden"),
        (
            f"students: [{SHAPE.replace('layers: 2', 'layers: 0')}]",
            r"students\[0\]\.layers: 1 or more, not 0",
        ),
        (f"students: [{SHAPE.replace('48', '48, embedding: 25')}]", "to the hidden size 24"),
        (f"students: [{SHAPE.replace('48', '48, embeding: 8')}]", "did you mean embedding"),
        (f"students: [{SHAPE}]\nlm: {{relation_heads: 7}}", "7 does not divide the hidden size 24"),
        ("source: {type: beri}", r"source\.type: no source 'beri' \(str\); did you mean beir"),
        ("source: {path: x}", "the key type"),
        ("source: {type: beir, pth: x}", r"unknown key source\.pth; did you mean path"),
        ("ranker: {strategies: [ranker_destill]}", "did you mean ranker_distill"),
        ("ranker: {train: {precision: fp16}}", "one of fp32, bf16"),
        ("ranker: {watch: {every: -1}}", r"ranker\.watch\.every: 0 or more, not -1"),
        ("ranker: {watch: {every: 5, queries: 0}}", r"ranker\.watch\.queries: 1 or more"),
        ("ranker: {watch: {every: 5, depth: 0}}", r"ranker\.watch\.depth: 1 or more"),
        ("ranker: {watch: {keep_best: true}}", "keep_best needs looks at dev; set .*every"),
        ("ranker: {watch: {patience: 2}}", "patience needs looks at dev"),
        ("ranker: {watch: {evry: 5}}", r"unknown key ranker\.watch\.evry; did you mean every"),
        ("ranker: {soft_losses: {margin_mes: 1}}", "did you mean margin_mse"),
        ("ranker: {hard_losses: {margin_mse: 1}}", "needs teacher scores"),
        ("lm: {losses: {hiden: 1}}", "did you mean hidden"),
        ("ranker: {intermediate_losses: {hiden: 1}}", "did you mean hidden"),
        ("ranker: {soft_losses: {}}", r"ranker\.soft_losses: at least one loss"),
        (f"students: [{SHAPE}]\nlm: {{layer_map: [1]}}", r"lm\.layer_map: \[1\] .* 2 layers"),
        (
            f"students: [{SHAPE}]\nlm: {{layer_map: [0, 1]}}",
            r"lm\.layer_map\[0\]: 1 or more, not 0",
        ),
        (
            f"students: [{SHAPE}]\nlm: {{losses: {{hidden: 1}}, relation_heads: 7}}\n"
            "ranker: {intermediate_losses: {qkv: 1}}",
            "7 does not divide the hidden size 24",
        ),
        ("lm: {train: {zero_stage: 3}}", "zero_stage"),
        ("lm: {train: {batch_size: 0}}", r"lm\.train\.batch_size: 1 or more, not 0"),
        ("lm: {train: {lr: .nan}}", r"lm\.train\.lr: a finite number, not nan"),
        ("evaluate: {depths: [10, 0]}", r"evaluate\.depths\[1\]: 1 or more, not 0"),
        ("evaluate: {depths: [51]}", "51 is not among the 50 candidates"),
        ("evaluate: {depth: 99, depths: [60]}", "prepare.depth keeps 50 of test"),
        (
            f"evaluate: {{depths: [61]}}\ntransfer: {{a: {{source: {BEIR}, depth: 60}}}}",
            "61 is not among the 60 candidates",
        ),
        (f"transfer: {{a: {{source: {BEIR}, split: tset}}}}", "transfer.a.split: .*no query set"),
        (f"transfer: {{test: {{source: {BEIR}}}}}", "transfer.test: evaluate.splits has a split"),
        (f"transfer: {{a/b: {{source: {BEIR}}}}}", "transfer: the name"),
        (f"transfer: {{a: {{source: {BEIR}, split: ../x}}}}", "transfer.a.split: the name"),
        (f"transfer: {{a: {{source: {BEIR}, depth: 0}}}}", "transfer.a.depth: 1 or more, not 0"),
        ("transfer: {a: {source: {type: trec}, split: all}}", r"transfer.a.split: \"all\""),
        ("transfer: {a: {split: test}}", "transfer.a.split: its source has no query set"),
        ("transfer: {a: {source: {type: beri}}}", r"transfer\.a\.source\.type: no source"),
        ("evaluate: {margin: 0}", r"evaluate\.margin: above 0"),
        ("evaluate: {primary: {dev: AP}}", "evaluate.primary: say under `default`"),
        ("evaluate: {measures: {default: AP}}", r"evaluate\.measures\.default: a list"),
        ("evaluate: {measures: {default: [AP], tset: [AP]}}", "'tset'.* did you mean test"),
        ("evaluate: {primary: {default: AP, dl20: AP}}", "evaluate.primary: no split .* 'dl20'"),
        ("prepare: {split: {train: 0.9, test: 0.3}}", "more than 1"),
        ("a: [1", "line 1"),
        ("- 1", "not a mapping"),
        ("source: {type: [beir]}", r"source\.type: no source"),
        ("lm: {train: {lr: .inf}}", "a finite number"),
        ("seed: -1", "seed: 0 or more"),
        ("ranker: {seed: -1}", "ranker.seed: 0 or more"),
        ("prepare: {easy_negatives: -1}", "prepare.easy_negatives: 0 or more"),
        ('"a\\nb": 1', r"unknown key a\\nb"),
        (r'report: {title: "a\0b"}', "NUL"),
        (r'report: {title: "\ud800"}', "half a surrogate"),
        (f"students: [{SHAPE.replace('hidden: 24', 'hidden: 100000000000')}]", "at most 1048576"),
        (f"students: [{'x' * 300}.yaml]", r"cannot use the path .* \(File name too long\)"),
        (r'students: ["\0"]', "NUL"),
        ("name: ../up", "name: the name '../up' becomes a file's"),
        ("name: /abs", "becomes a file's"),
        ("name: a b", "becomes a file's"),
        ('name: ""', "becomes a file's"),
        (f"name: {'x' * 101}", "at most 100 bytes"),
        (f"students: [{SHAPE.replace('name: s', 'name: ../s')}]", "students: the name"),
        (f"students: [{SHAPE}, {SHAPE.replace('name: s', 'name: S')}]", "students: two are named"),
        ("prepare: {split: {../x: 1.0}}", "prepare.split: the name"),
        ("source: {type: beir, splits: {../x: train}}", "source.splits: the name"),
        ("source: {type: msmarco, queries: {a/b: x}}", "source.queries: the name"),
        ("source: {type: trec, topics: {.x: x}}", "source.topics: the name"),
        ("source: {type: ir_datasets, ids: {x: a, X: b}}", "source.ids: two are named"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(tmp_path, text, message):
    with pytest.raises(KdscaleError, match=message) as caught:
        _load(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["seed", "=1", "seed.x=1", "seed=[1", "a\nb", "seed=\udc80", "seed=&a [*a]"]
)
def test_a_bad_override_is_named(tmp_path, override):
    with pytest.raises(KdscaleError, match="--set") as caught:
        _load(tmp_path, "seed: 1", override)
    assert "\n" not in str(caught.value)


def test_a_student_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "students").mkdir()
    (tmp_path / "students" / "bad.yaml").write_bytes(b"\xff")
    with pytest.raises(KdscaleError, match=r"cannot read .*bad\.yaml"):
        _load(tmp_path, "students: [bad]")


def test_a_missing_and_a_binary_file(tmp_path):
    with pytest.raises(KdscaleError, match="no config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KdscaleError, match="cannot read"):
        load_config(tmp_path / "b.yaml")
