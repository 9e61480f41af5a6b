"""`kdscale plan`: counted by hand, monotone, in the right units. No time is asserted."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from world import make_config

from kdscale.cli import main
from kdscale.config import Shape, Teacher
from kdscale.configload import load_config
from kdscale.errors import KdscaleError
from kdscale.planning import rates, text
from kdscale.planning.counts import Counts, counts_of
from kdscale.planning.model import ALONE, EVERYWHERE, CostModel, Machines, padded_length
from kdscale.planning.rates import ASSUMED, GPUS, Compute, gpu_rates
from kdscale.planning.scale import SCALES, scale_lines, scaled
from kdscale.planning.shapes import Model, student_model, teacher_model

ROOT = Path(__file__).parent.parent
TINY = Model("tiny", 2, 32, 4, 64, 105, 32)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_counts(**changes):
    counts = Counts(1_000, 300.0, {"train": 500, "dev": 50, "test": 50}, 2_000,
                    np.full(100, 20), 400, "the test")  # fmt: skip
    return dataclasses.replace(counts, **changes)


def machines(devices=1, device=ASSUMED, cores=4):
    return Machines(device, devices, ASSUMED, cores)


def seconds(config, counts=None, where=None):
    stages = CostModel(config, counts or make_counts(), where or machines()).stages()
    return {stage.name: stage.total for stage in stages}


def test_flops_are_those_that_are_counted_as_they_run():
    from transformers import BertConfig, BertModel

    from kdscale.evaluation.flops import count_parameters, forward_flops

    bert = BertModel(
        BertConfig(
            vocab_size=105, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64,
        )
    ).eval()  # fmt: skip
    pooler = 2 * 32 * 32
    assert TINY.flops(16) == forward_flops(bert, 16) - pooler
    assert TINY.parameters == pytest.approx(count_parameters(bert)[0], rel=0.01)


def test_a_student_has_the_teachers_vocabulary_and_its_own_embeddings(config_file):
    teacher = teacher_model(load_config(config_file).teacher)
    assert (teacher.layers, teacher.hidden, teacher.vocabulary) == (2, 32, 105)
    narrow = student_model(Shape("s", 1, 16, 2, 32, embedding=8), teacher)
    assert narrow.vocabulary == 105 and narrow.table_parameters == (105 + 512) * 8
    assert narrow.flops(10) - student_model(Shape("s", 1, 16, 2, 32), teacher).flops(10) == (
        2 * 10 * 8 * 16
    )


def test_a_well_known_model_needs_no_hub_and_another_one_must_be_there():
    bert = teacher_model(Teacher(model="google-bert/bert-base-uncased"))
    assert bert.parameters == pytest.approx(109.5e6, rel=0.01)
    assert bert.source == "the published shape"
    with pytest.raises(KdscaleError, match="does not exist"):
        teacher_model(Teacher(model="./no-such-folder"))


def test_seconds_of_a_pair_by_hand(config_file):
    """One scored pair of 20 tokens: its matrix products and values at the rates given."""
    config = load_config(config_file)
    device = dataclasses.replace(ASSUMED, forward=Compute(1e6, 2e6))
    stages = CostModel(config, make_counts(pairs=1), machines(device=device)).stages()
    (score,) = (s for s in stages if s.name == "scores")
    model = teacher_model(config.teacher)
    expected = model.flops(20) / 1e6 + model.elements(20) / 2e6
    assert score.seconds[EVERYWHERE] == pytest.approx(expected)
    assert score.flops == model.flops(20)


def test_more_data_take_longer_and_nothing_takes_less(config_file):
    config = load_config(config_file)
    config.ranker.train.max_steps = config.teacher.train.max_steps = None
    small = seconds(config)
    grown = seconds(config, make_counts(
        passages=10_000, pairs=20_000, blocks=4_000, lengths=np.full(100, 30),
        queries={"train": 5_000, "dev": 500, "test": 500},
    ))  # fmt: skip
    assert small.keys() == grown.keys()
    assert all(grown[name] >= small[name] for name in small)
    for name in ("dataset", "tokens", "teacher", "scores", "student:finetune:tiny", "evaluation"):
        assert grown[name] > small[name], name


def test_scoring_is_proportional_to_the_pairs(config_file):
    config = load_config(config_file)

    def spread(pairs):
        stages = CostModel(config, make_counts(pairs=pairs), machines()).stages()
        return next(s for s in stages if s.name == "scores").seconds[EVERYWHERE]

    assert spread(6_000) == pytest.approx(3 * spread(2_000))


def test_more_devices_share_what_is_spread_and_nothing_else(config_file):
    config = load_config(config_file)
    one, four = (
        {s.name: s.seconds for s in CostModel(config, make_counts(), machines(n)).stages()}
        for n in (1, 4)
    )
    assert four["scores"][EVERYWHERE] == pytest.approx(one["scores"][EVERYWHERE] / 4)
    assert four["scores"][ALONE] == one["scores"][ALONE]
    assert four["evaluation"] == one["evaluation"]


def test_the_whole_is_the_sum_of_what_is_not_there_yet(config_file):
    config = load_config(config_file)
    model = CostModel(config, make_counts(), machines(2))
    stages = model.stages(frozenset({"dataset", "scores"}))
    plan = text.Plan(config, make_counts(), machines(2), model, stages, 3.0)
    left = [s for s in stages if s.name not in ("dataset", "scores")]
    assert plan.seconds == pytest.approx(sum(s.total for s in left))
    assert plan.bytes == pytest.approx(sum(s.bytes for s in left))
    assert plan.cost == pytest.approx(plan.seconds / 3600 * 3.0 * 2)
    assert plan.slowest.total == max(s.total for s in left)


def test_a_faster_gpu_is_faster_and_lower_precision_too():
    a100, h100 = (gpu_rates(name, "bf16", ASSUMED) for name in ("a100", "H100"))
    assert h100.forward.flops > a100.forward.flops
    assert gpu_rates("a100", "fp32", ASSUMED).forward.flops < a100.forward.flops
    assert a100.forward.flops == pytest.approx(0.4 * 312e12) and not a100.measured
    assert all(10e9 < gpu.memory < 200e9 and gpu.bf16 > gpu.fp32 for gpu in GPUS.values())
    with pytest.raises(KdscaleError, match=r"--gpu h10: .*did you mean h100"):
        gpu_rates("h10", "bf16", ASSUMED)


def test_padding():
    assert padded_length(np.full(50, 30), 4, 8) == 30
    mixed = np.array([10, 50])
    assert 30 < padded_length(mixed, 4, 8) <= 50


def test_a_step_that_does_not_fit_the_device_is_told(config_file):
    config = load_config(config_file, ["teacher.train.micro_tokens=100000000"])
    model = CostModel(config, make_counts(), machines())
    plan = text.Plan(config, make_counts(), machines(), model, model.stages(), None)
    (line,) = text.memory_lines(plan)
    assert "lower train.micro_tokens" in line


def test_what_is_not_counted_is_said(config_file):
    config = load_config(config_file, ["transfer={other: {source: {type: beir, path: x}}}"])
    model = CostModel(config, make_counts(), machines())
    plan = text.Plan(config, make_counts(), machines(), model, model.stages(), None)
    assert "not counted: the collections of transfer (other)" in text.summary(plan)


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


def test_scales_grow_and_say_where_a_stage_stops(config_file):
    lines = list(scale_lines(load_config(config_file), make_counts(), machines(8)))
    assert sum(line.startswith(tuple(s.name for s in SCALES)) for line in lines) == 3
    stops = [line for line in lines if "STOPS HERE" in line]
    assert any(line.split()[0] == "prepare" for line in stops)
    beyond = lines[lines.index(f"beyond: {SCALES[2].text}") :]
    assert len([line for line in beyond if "STOPS HERE" in line]) >= 3
    grown = scaled(make_counts(), SCALES[0], 5)
    assert grown.queries["train"] == 8_000_000 and grown.pairs == 40_000_000


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give a CONFIG to plan, or --calibrate"),
        (["CONFIG", "--gpus", "-1"], "--gpus: 0 or more, not -1"),
        (["CONFIG", "--cpus", "0"], "--cpus: 1 or more, not 0"),
        (["CONFIG", "--passages", "0"], "--passages: 1 or more, not 0"),
        (["CONFIG", "--price-per-hour", "-2"], "--price-per-hour: 0 or more, not -2.0"),
        (["CONFIG", "--price-per-hour", "nan"], "--price-per-hour: a finite number, not nan"),
        (["CONFIG", "--gpus", "1", "--gpu", "tpu"], "--gpu tpu: not in the table"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_arguments_that_cannot_be(config_file, cache, arguments, message, capsys):
    given = [str(config_file) if a == "CONFIG" else a for a in arguments]
    assert main(["plan", *given]) == 1
    assert message in capsys.readouterr().err


def test_the_command_without_a_store(config_file, cache, capsys):
    arguments = ["plan", str(config_file), "--gpus", "8", "--gpu", "h100", "--price-per-hour", "2"]
    assert main([*arguments, "--scale"]) == 0
    shown = capsys.readouterr().out
    assert "on 8 x h100 with 64 cores" in shown and "at 2 an hour and device" in shown
    assert "ASSUMED to reach 40% of its peak in a forward pass" in shown
    assert "the store has no dataset of it yet" in shown and "ClueWeb22-B" in shown
    assert main([*arguments, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["devices"] == 8 and not told["measured"]
    assert told["seconds"] == pytest.approx(sum(s["seconds"] for s in told["stages"]))
    assert told["cost"] == pytest.approx(told["seconds"] / 3600 * 2 * 8)


def test_a_calibration_is_kept_for_this_machine_alone(cache):
    assert rates.load_calibration() is None
    measured = dataclasses.replace(ASSUMED, measured=True, cores=3)
    path = rates.save_calibration(measured)
    assert path == cache / "calibration.json" and rates.load_calibration() == measured
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "machine": {**told["machine"], "cpu": "another"}}))
    assert rates.load_calibration() is None
    path.write_text(json.dumps({**told, "rates": {"name": "old"}}))
    assert rates.load_calibration() is None
    path.write_text("{")
    with pytest.raises(KdscaleError, match=r"calibration\.json is damaged"):
        rates.load_calibration()


@pytest.mark.slow
def test_calibration_measures_this_machine(cache, capsys):
    """All but the start of Ray's workers, which takes most of its time."""
    from kdscale.planning.calibrate import calibrate
    from kdscale.progress import Reporter

    found = calibrate(Reporter(), ray=False)
    assert found.measured
    for name, value in dataclasses.asdict(found).items():
        numbers = value.values() if isinstance(value, dict) else [value]
        assert all(math.isfinite(n) and n > 0 for n in numbers if not isinstance(n, str)), name


@pytest.mark.slow
def test_what_the_store_has_is_counted_there_and_not_run_again(
    config_file, cache, ray_cluster, capsys
):
    assert main(["prepare", str(config_file)]) == 0
    capsys.readouterr()
    assert main(["plan", str(config_file), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    there = {s["step"] for s in told["stages"] if s["cached"]}
    assert there == {"dataset", "tokens"}
    assert told["counts"]["source"].startswith("the facts of datasets/tiny-")
    assert told["counts"]["pairs"] == 300 and told["counts"]["passages"] == 160
    assert 10 < told["counts"]["pair_tokens"] <= 32
    assert told["seconds"] == pytest.approx(
        sum(s["seconds"] for s in told["stages"] if not s["cached"])
    )
    assert main(["plan", str(config_file)]) == 0
    assert "is there" in capsys.readouterr().out
