"""Whatever texts and names an experiment has, its page has the same elements and one script."""

import dataclasses
import html
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kdscale.config import Ranker, Shape
from kdscale.experiment.steps import report_settings
from kdscale.report.evidence import collect
from kdscale.report.page import render_page
from kdscale.report.verdict import judge
from tests.report.test_page import Page
from tests.worlds import report_experiment
from tests.worlds.report_experiment import COST, FORWARD_MS, make_config, make_inputs

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "--></style><script>alert(1)//",
    "]]><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
    '" onmouseover="alert(1)" x="',
    '"><iframe srcdoc="<script>alert(1)</script>">',
    "javascript:alert(1)",
    "\u2028\u2029alert(1)",
    "{{ 7*7 }}{% for x in range(9**9) %}{{ config }}{% endfor %}",
    "&lt;script&gt;alert(1)&lt;/script&gt;&#0;&#xD800;",
    "\x00\x07\x1b[2J\x7f",
    "$\\frac{$ $_^$",
    "url(https://evil) expression(alert(1)); } * { background: url(x)",
    '<a id="artifact-0" name=filters href=//evil>x</a>',
    'var(--ink) id="x" href="#x" url(#x) #0a0b01',
    "\ufffe\uffff\U000e0001\u202e",
]


def _page(root, monkeypatch, text):
    """The page of an experiment with `text` wherever one may stand."""
    braces = text.replace("{", "{{").replace("}", "}}")
    monkeypatch.setattr(report_experiment, "ASKED", (f"what of {{}} {braces}",))
    # A student's name is one of a file and a word of a run.
    word = "".join(c for c in text if c.isprintable() and c not in " /\\")[:60]
    shape = Shape(f"s{word}", 2, 192, 6, 768)
    config = make_config(root, [shape], ranker=Ranker(strategies=["ranker_distill"]))
    monkeypatch.setattr(report_experiment, "COST", {**COST, shape.name: COST["2l-192"]})
    monkeypatch.setattr(report_experiment, "FORWARD_MS", {**FORWARD_MS, shape.name: 61.0})
    inputs = make_inputs(config, queries=6)
    config = replace(
        config,
        name=text,
        report=replace(config.report, title=text),
        source=replace(config.source, path=text),
    )
    for artifact in inputs.values():
        artifact.manifest["facts"] |= {text: text, "more": [text]}
        artifact.manifest["config"] = {"a": text}
        artifact.manifest.update(dict.fromkeys(("stage", "kdscale", "created"), text))
    evidence = collect(report_settings(config), inputs)
    return render_page(evidence, judge(evidence))


ACTIVE = ("href", "src", "action", "style", "http-equiv", "content", "type")
DRAWN = {"path", "use", "g", "text", "tspan", "defs", "clippath", "rect", "svg", "line", "style"}


def _skeleton(page):
    """Every element of the page with its attributes, and their values but where texts stand.

    What the figures draw depends on a name's width: of it only that it is drawing and no more.
    """
    parsed = Page(page)
    found = []
    for tag, attributes in parsed.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("xlink:href", "#").startswith("#")
        if tag not in DRAWN | {"wbr"}:
            values = [v for k, v in attributes.items() if k in ACTIVE]
            found.append((tag, *sorted(attributes), *values))
    return found, parsed


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _skeleton(_page(tmp_path_factory.mktemp("plain"), monkeypatch, "plain"))[0]


def _check(root, plain, text):
    with pytest.MonkeyPatch.context() as monkeypatch:
        page = _page(root, monkeypatch, text)
    skeleton, parsed = _skeleton(page)
    assert skeleton == plain
    if text.strip():
        shown = " ".join("".join(parsed.text).split())
        # The queries, in the examples: what HTML cannot hold is shown as U+FFFD.
        assert shown.count(" ".join(html.unescape(html.escape(text)).split())) > 6
    page.encode()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_adds_an_element_or_an_attribute(tmp_path, plain, text):
    _check(tmp_path, plain, text)


@pytest.mark.slow
@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=9), max_size=4).map("".join))
@settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
def test_no_mixture_of_texts_does_either(tmp_path_factory, plain, text):
    _check(tmp_path_factory.mktemp("mixed"), plain, text)


def test_a_strategy_that_is_none_brings_no_style_in(experiment):
    style = "finetune); background: url(//evil"
    systems = [
        {**s, "strategy": style} if s["strategy"] == "finetune" else s
        for s in experiment.evidence.systems
    ]
    evidence = dataclasses.replace(experiment.evidence, systems=systems)
    parsed = Page(render_page(evidence, judge(evidence)))
    assert any(style in text for text in parsed.text)
    assert not any("url(" in attributes.get("style", "") for _, attributes in parsed.tags)
