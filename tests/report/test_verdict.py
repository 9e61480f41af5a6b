from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import collect
from kdscale.report.page import render_page
from kdscale.report.verdict import judge, pick
from tests.worlds.report_experiment import make_config, make_inputs


def system(name, quality, flops=100, significant=False, delta=None, noninferior=False):
    strategy = "ranker_distill"
    shape = name.partition("/")[2] or None
    tests = {}
    if delta is not None:
        test = {"delta": delta, "significant": significant, "noninferior": noninferior, "n": 50}
        tests = {"test": {"AP": test}}
    return {
        "system": name,
        "strategy": strategy if shape else None,
        "student": shape,
        "measures": {"test": {"AP": quality}},
        "tests": tests,
        "flops_per_pair": flops,
    }


BM25 = system("bm25", 0.30, delta=-0.4, significant=True)
TEACHER = system("teacher", 0.70, flops=1000)


def taken(*students):
    best, standing = pick([BM25, TEACHER, *students], "test", "AP")
    return best and best["system"], standing


def test_the_cheapest_shape_that_is_not_significantly_worse():
    large = system("a/large", 0.71, flops=300, delta=0.01)
    small = system("a/small", 0.68, flops=90, delta=-0.02)
    tiny = system("a/tiny", 0.60, flops=20, delta=-0.10, significant=True)
    assert taken(large, small, tiny) == ("a/small", "level")


def test_a_student_shown_not_to_be_worse_goes_before_a_cheaper_one_without_proof():
    sure = system("a/large", 0.69, flops=300, delta=-0.002, noninferior=True)
    unsure = system("a/small", 0.695, flops=20, delta=-0.001)
    loss = system("b/large", 0.68, flops=200, delta=-0.004, significant=True, noninferior=True)
    assert taken(sure, unsure) == ("a/large", "noninferior")
    assert taken(sure, unsure, loss) == ("b/large", "noninferior")


def test_in_the_cheapest_shape_the_best():
    one, two = (system(f"{s}/x", q, delta=-0.01) for s, q in (("a", 0.66), ("b", 0.69)))
    assert taken(one, two) == ("b/x", "level")


def test_significantly_better_is_not_worse():
    assert taken(system("a/x", 0.8, delta=0.1, significant=True)) == ("a/x", "level")


def test_the_best_where_all_are_worse():
    one = system("a/x", 0.50, flops=10, delta=-0.2, significant=True)
    two = system("a/y", 0.55, flops=90, delta=-0.15, significant=True)
    assert taken(one, two) == ("a/y", "worse")


def test_a_student_below_bm25_is_never_taken():
    below = system("a/x", 0.29, flops=1, delta=-0.41)
    assert taken(below) == ("a/x", "useless")
    assert taken(below, system("a/y", 0.5, delta=-0.2, significant=True)) == ("a/y", "worse")


def test_without_students():
    assert taken() == (None, "none")


def test_the_answer_names_quality_speed_and_doubt(experiment):
    text = judge(experiment.evidence).text
    chosen = experiment.evidence.system("lm_distill_ranker_distill/2l-192")
    test = experiment.evidence.test(chosen)
    assert text.startswith("Take lm_distill_ranker_distill/2l-192, with a doubt: no difference")
    assert "not measurably worse" not in text and test["noninferior"] is False
    assert f"reaches {chosen['measures']['test']['nDCG@10']:.3f} nDCG@10" in text
    assert f"{chosen['speedup']:.1f} times as fast" in text
    assert "is not significant" in text and "does not prove the two equal" in text
    assert "a loss of 0.01 nDCG@10 or more is not ruled out" in text
    assert f"a true loss of up to {-test['ci'][0]:.3f} remains possible" in text


def test_not_measurably_worse_is_said_where_the_test_shows_it(lenient):
    verdict = judge(lenient)
    test = lenient.test(verdict.system)
    assert verdict.standing == "noninferior" and test["noninferior_p_holm"] < 0.05
    name = verdict.system["system"]
    assert verdict.text.startswith(f"Take {name}: it is not measurably worse than the teacher.")
    assert "A loss of 0.1 nDCG@10 or more is ruled out (one-sided" in verdict.text
    assert "is not significant" in verdict.text and "not prove" not in verdict.text
    assert "less than 0.1 lost" in render_page(lenient, verdict)


def test_a_failed_experiment_says_so_and_boasts_of_nothing(tmp_path):
    config = make_config(tmp_path / "store")
    skill = dict.fromkeys(config.ranker.strategies, -1.0)
    evidence = collect(report_settings(config), make_inputs(config, skill=skill, queries=40))
    verdict = judge(evidence)
    assert verdict.standing == "useless"
    assert verdict.text.startswith("None of the students is worth taking yet")
    assert "give the student more data" in verdict.text
    page = render_page(evidence, verdict)
    assert "take this" not in page and 'class="tiles"' not in page
