"""`kdscale plan`. No time is asserted."""

import json

import pytest

from kdscale.cli import main


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
