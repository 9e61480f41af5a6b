"""What README and docs/ tell people to write and to type is what kdscale understands, and every
link leads somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kdscale.cli import _parser
from kdscale.experiment.load import load_config
from kdscale.sweep.spec import load_sweep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
CORPUS, CLUSTER, SWEEPS = (
    (DOCS / "guides" / name).read_text(encoding="utf-8")
    for name in ("your-own-corpus.md", "cluster.md", "sweeps.md")
)
INPUT_FILES, COMMAND_LIST, LOSSES = (
    (DOCS / "reference" / name).read_text(encoding="utf-8")
    for name in ("input-files.md", "commands.md", "losses.md")
)
RECIPE = (DOCS / "explanation" / "recipes.md").read_text(encoding="utf-8")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(text):
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


CONFIG, *PARTS = [block for text in (CORPUS, INPUT_FILES, RECIPE) for block in blocks(text)]


def commands(text, program="kdscale"):
    """The command lines of the indented blocks, without their comments."""
    return [
        line.split("#")[0].strip().removeprefix(".venv/bin/")
        for line in text.replace("\\\n", " ").splitlines()
        if re.match(rf" {{4,}}(?:\.venv/bin/)?{program} ", line)
    ]


COMMANDS = sorted(
    {command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))}
)


def prose(text):
    """Without what stands in blocks of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^(?: {4,}|\t).*$", "", text, flags=re.MULTILINE)


def anchors(page):
    """Those of a page's headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def broken_links(page):
    """The relative links of a page that lead to no file, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_resolves(page):
    assert broken_links(page) == []


def test_links_to_no_file_or_no_heading_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `thing`: told\n\n[a](page.md#one-thing-told) [b](#two) [c](no.md) [d](https://x.y)\n"
    )
    assert broken_links(page) == ["#two", "no.md"]


def test_the_index_names_every_page():
    index = DOCS / "index.md"
    linked = {
        (DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", index.read_text("utf-8"))
    }
    pages = {page for page in PAGES if page.parent != ROOT and page != index}
    assert linked == pages | {ROOT / "README.md"}
    assert "](docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_has_the_commands_of_ci():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    for line in (
        "    python3 -m venv .venv && .venv/bin/pip install -e '.[demo]'\n"
        "    .venv/bin/kdscale run configs/quickstart.yaml\n",
        "    python3 -m venv .venv && .venv/bin/pip install -e '.[demo,dev]'\n"
        "    .venv/bin/python -m pytest\n",
    ):
        assert line in text


def test_the_settings_reference_is_what_its_script_makes():
    script = ROOT / "scripts" / "settings-reference"
    done = subprocess.run(
        [sys.executable, script, "--check"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_settings_reference_has_every_key():
    """Counted by another way than the script's: every leaf of the default config."""
    from kdscale.config import Config
    from kdscale.experiment.load import SOURCES, to_dict

    data = to_dict(Config())
    groups = {*data, "train", "watch"}

    def leaves(value, prefix):
        for key, inner in value.items():
            if isinstance(inner, dict) and key in groups:
                yield from leaves(inner, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    keys = set(leaves(data, "")) - {"students", "ensemble"}
    keys |= {f"source.{key}" for cls in SOURCES.values() for key in to_dict(cls())}
    text = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    assert {key for key in keys if f"`{key}`" not in text} == set()
    assert len(keys) > 120


def test_the_losses_reference_names_every_loss():
    from kdscale.losses import HARD_LOSSES, INTERMEDIATE_LOSSES, MASKED_LOSSES, SOFT_LOSSES

    sections = re.split(r"^## ", LOSSES, flags=re.MULTILINE)[1:]
    named = [re.findall(r"^\| `(\w+)`", section, re.MULTILINE) for section in sections]
    losses = [HARD_LOSSES, SOFT_LOSSES, list(INTERMEDIATE_LOSSES), list(MASKED_LOSSES)]
    assert [set(names) for names in named] == [set(names) for names in losses]


def test_the_config_is_complete(tmp_path):
    path = tmp_path / "mycorpus.yaml"
    path.write_text(CONFIG)
    config = load_config(path)
    assert config.name == "mycorpus" and config.students[0].name == "2l-192"
    assert yaml.safe_load(CONFIG)["storage"]["uri"] == config.storage.uri


@pytest.mark.parametrize("block", PARTS)
def test_every_other_block_is_part_of_a_config(block, tmp_path):
    path = tmp_path / "mycorpus.yaml"
    given = yaml.safe_load(block)
    path.write_text(yaml.safe_dump(yaml.safe_load(CONFIG) | given))
    config = load_config(path)
    if "source" in given:
        assert config.source.type == given["source"]["type"]
    elif "evaluate" in given:
        assert config.evaluate.measures_of("dl19") == given["evaluate"]["measures"]["dl19"]
    else:
        assert config.ranker.train.lr == given["ranker"]["train"]["lr"]


def subparsers():
    (found,) = (a.choices for a in _parser()._actions if getattr(a, "choices", None))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    """Without what stands in brackets, of which the options are looked up."""
    name = command.split()[1]
    args = _parser().parse_args(shlex.split(re.sub(r"\[[^]]*\](?=\s|$)", "", command))[1:])
    assert args.command == name
    optional = re.findall(r"(?<=\[)(-[^]]*)\](?=\s|$)", command)
    options = set(re.findall(r"--[\w-]+", " ".join(optional)))
    assert options <= set(subparsers()[name]._option_string_actions)


def test_the_list_of_commands_has_them_all():
    assert {command.split()[1] for command in commands(COMMAND_LIST)} == set(subparsers())


def test_the_config_of_the_cluster_guide(tmp_path):
    path = tmp_path / "mycorpus.yaml"
    (block,) = blocks(CLUSTER)
    path.write_text(block)
    cluster = load_config(path).cluster
    manifest = yaml.safe_load((ROOT / "cluster/raycluster.yaml").read_text())
    groups = manifest["spec"]["workerGroupSpecs"]
    assert [cluster.worker_labels, cluster.scorer_labels] == [g["labels"] for g in groups[:2]]
    assert cluster.workers <= groups[0]["maxReplicas"]
    assert cluster.scorers <= groups[1]["maxReplicas"]


def test_the_sweep_of_the_guide(tmp_path):
    (tmp_path / "mycorpus.yaml").write_text(CONFIG)
    path = tmp_path / "sweep.yaml"
    (block,) = blocks(SWEEPS)
    path.write_text(block.replace("2l-192, {name", "{name"))  # no students/ beside it
    trials = load_sweep(path).trials
    assert len(trials) == 3 * 1 * 2 * 2 * 4  # strategies, shapes, budgets, seeds, samples


def test_files_that_the_pages_name_are_there():
    folders = "cluster|configs|jobs|benchmarks|scripts|kdscale|tests|docs"
    pattern = rf"(?:-f |`|up |down |dashboard |python )((?:{folders})/[\w./-]*)"
    named = {
        name for page in PAGES for name in re.findall(pattern, page.read_text(encoding="utf-8"))
    }
    assert len(named) >= 30
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_ray_commands_of_the_cluster_guide_are_rays():
    from ray.scripts.scripts import cli

    given = commands(CLUSTER, "ray")
    assert len(given) == 7
    for line in given:
        words = shlex.split(line)[1:]
        group = cli
        while hasattr(group, "commands"):
            group = group.commands[words.pop(0)]
        known = {option for parameter in group.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
