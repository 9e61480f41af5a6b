"""No file of ours calls what turns data into code, whoever wrote the data."""

import ast
import dataclasses
from pathlib import Path

import pytest

import kdscale
from kdscale import config as schema
from kdscale.errors import KdscaleError
from kdscale.experiment.load import load_config

PACKAGE = Path(kdscale.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Calls by their last name, and the module's name before it where the last alone says too little.
CALLS = {
    "torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
    "torch.serialization.load", "yaml.load", "yaml.load_all", "yaml.full_load",
    "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.Loader",
    "yaml.FullLoader", "yaml.UnsafeLoader", "pd.read_pickle", "pandas.read_pickle", "os.system",
    "os.popen", "tarfile.open", "shutil.unpack_archive",
}  # fmt: skip
FROM_A_MODEL = {"from_pretrained", "from_config"}


def faults(source: str) -> list[str]:
    """What in a module's source could run code that came as data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found += [f"import of {name}" for name in names if name in CALLS]
        found += [f"import of {name}" for name in names if name.split(".")[-1] in UNPICKLING]
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found += [dotted] if dotted in CALLS or node.attr in UNPICKLING else []
        if isinstance(node, ast.Call):
            found += _faults_of_call(node)
    return found


def _faults_of_call(node: ast.Call) -> list[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = [
        f"{k}={given[k]}" for k in ("allow_pickle", "shell") if given.get(k, "False") != "False"
    ]
    if given.get("weights_only", "True") != "True":
        found.append("weights_only")
    trust = given.get("trust_remote_code", "False")
    if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
        found.append(node.func.id)
    if isinstance(node.func, ast.Attribute) and node.func.attr in FROM_A_MODEL:
        trust = given.get("trust_remote_code", "not given")
    return found if trust == "False" else [*found, f"trust_remote_code is {trust}"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_and_no_model_is_trusted(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import ray.cloudpickle",
        "from ray import cloudpickle\ncloudpickle.loads(x)",
        "torch.load(path)",
        "from torch import load",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=setting)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "class L(yaml.FullLoader): pass",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_config(c, trust_remote_code=config.trust)",
        "f(trust_remote_code=None)",
        "subprocess.run(line, shell=True)",
        "eval(x)",
    ],
)
def test_the_check_finds_what_it_looks_for(source):
    assert faults(source)


def test_no_setting_has_to_do_with_code(tmp_path):
    classes = [c for c in vars(schema).values() if dataclasses.is_dataclass(c)]
    names = {f.name for c in classes for f in dataclasses.fields(c)}
    assert "model" in names and not {n for n in names if "trust" in n or "code" in n}
    path = tmp_path / "c.yaml"
    path.write_text("teacher: {trust_remote_code: true}")
    with pytest.raises(KdscaleError, match=r"unknown key teacher\.trust_remote_code"):
        load_config(path)
    with pytest.raises(KdscaleError, match=r"unknown key teacher\.trust_remote_code"):
        path.write_text("seed: 1")
        load_config(path, ["teacher.trust_remote_code=true"])
