import json

from kdscale.advice import text
from kdscale.cli import main
from tests.advice.tables import DAY, LARGE, WHOLE, ask, teacher, write


def test_the_answer_names_its_evidence():
    advice = ask(WHOLE, latency_ms=30, update_every_s=7 * DAY, train_hours=2)
    told = "\n".join(text.answer(advice))
    assert told.startswith("Take lm_distill_ranker_distill/4l-312, all training queries.")
    assert "students/4l-312-lm_distill_ranker_distill-1.0-1" in told
    assert "0.598, the teacher 0.600: -0.002" in told and "over 400 queries of made test" in told
    assert "20 ms a query of 50 candidates, 10.0x faster" in told
    assert "1 h of scoring" not in told and "60 min of scoring by the teacher" in told
    assert "2 h of distilling its language model, once" in told
    assert "1 seed: how much another one differs is not known" in told
    assert advice.chosen.family == 4 and "Holm over 4" in told
    reasons = "\n".join(text.reasons(advice))
    assert "3 of 3 shapes rank within 30 ms (2l-128 3 ms, 3l-192 8 ms, 4l-312 20 ms)" in reasons
    assert "its first training takes" in reasons.lower() and "is paid once" in reasons
    # 4l-312 has both sides of one distillation.
    assert "+0.002 with all training queries (lm_distill_ranker_distill, not ranker_" in reasons


def test_unknown_shared_costs_are_said_to_be():
    advice = ask([teacher(), LARGE], shared={}, train_hours=1)
    assert "not known, and not counted: the teacher's scoring, its language model's" in "\n".join(
        text.answer(advice)
    )


def test_json(tmp_path, capsys):
    path = write(tmp_path / "t.parquet")
    assert main(["advise", str(path), "--latency-ms", "5", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["chosen"] is None and told["nearest"]["strategy"] == "lm_distill_finetune"
    assert len(told["judged"]) == 4 and told["candidates"] == 50 and told["table"] == str(path)
    assert told["binding"] == {
        "--latency-ms": "lm_distill_ranker_distill/4l-312, all training queries",
        "--max-drop": "finetune/2l-128, all training queries",
    }
    assert told["next"][0]["strategy"] == "lm_distill_ranker_distill"
    assert told["needs"]["latency_ms"] == 5
