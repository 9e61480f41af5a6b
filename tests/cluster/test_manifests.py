"""The manifests of cluster/ are what KubeRay, Kubernetes and `ray up` take."""

import copy
import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from kdscale.cli import _parser
from kdscale.experiment.load import load_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMA = yaml.safe_load((Path(__file__).parent / "schemas" / "ray.io_v1.yaml").read_text())
CONTAINERS = ("containers", "initContainers")


def kubernetes_definitions() -> dict:
    """Kubernetes' own API as JSON Schema, newest version, unknown fields refused."""
    versions = files("kubernetes_validate").joinpath("kubernetes-json-schema")
    newest = max(
        (v for v in versions.iterdir() if v.name.endswith("-local-strict")),
        key=lambda v: [int(n) for n in v.name.split("-")[0].removeprefix("v").split(".")],
    )
    return json.loads(newest.joinpath("_definitions.json").read_text())


DEFINITIONS = kubernetes_definitions()
BASE = "https://kubernetes.io/api/"
REGISTRY = Registry().with_resources(
    [
        (f"{BASE}_definitions.json", Resource.from_contents(DEFINITIONS)),
        (f"{BASE}ray.io_v1.yaml", Resource.from_contents(SCHEMA)),
    ]
)


def validate(manifest: dict) -> None:
    """Raise ValidationError where the API server would refuse the manifest or drop a field."""
    kind = manifest.get("kind")
    own = manifest.get("apiVersion") == "ray.io/v1"
    reference = f"ray.io_v1.yaml#/$defs/{kind}" if own else f"_definitions.json#/$defs/{CORE[kind]}"
    Draft202012Validator({"$ref": BASE + reference}, registry=REGISTRY).validate(manifest)


CORE = {"ServiceAccount": "io.k8s.api.core.v1.ServiceAccount"}


def read(name: str) -> dict:
    (manifest,) = yaml.safe_load_all((CLUSTER / name).read_text())
    return manifest


def cluster_spec() -> dict:
    return read("raycluster.yaml")["spec"]


def pods() -> list[dict]:
    spec = cluster_spec()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "access.yaml"])
def test_a_manifest_is_what_its_api_takes(name):
    validate(read(name))


def head(spec):
    return spec["headGroupSpec"]["template"]["spec"]["containers"][0]


def worker(spec):
    return spec["workerGroupSpecs"][0]


WRONG = {
    "an unknown field of the cluster": lambda s: s.update(enableInTreeAutoscalling=True),
    "an unknown field of a group": lambda s: worker(s).update(maxReplica=3),
    "an unknown field of a pod": lambda s: worker(s)["template"]["spec"].update(toleration=[]),
    "an unknown field of a container": lambda s: head(s).update(enviroment=[]),
    "an unknown field deep in a pod": lambda s: head(s)["env"].append({"name": "A", "vale": "b"}),
    "a group without a template": lambda s: worker(s).pop("template"),
    "a group without a name": lambda s: worker(s).pop("groupName"),
    "no head": lambda s: s.pop("headGroupSpec"),
    "a negative number of workers": lambda s: worker(s).update(minReplicas=-1),
    "a number where start parameters are text": lambda s: s["headGroupSpec"].update(
        rayStartParams={"num-cpus": 0}
    ),
    "an autoscaler that there is not": lambda s: s["autoscalerOptions"].update(version="v3"),
    "a way to authenticate that there is not": lambda s: s["authOptions"].update(mode="tokens"),
    "a pod without containers": lambda s: worker(s)["template"]["spec"].pop("containers"),
    "a port that is no number": lambda s: head(s)["ports"][0].update(containerPort="gcs"),
}


@pytest.mark.parametrize("mistake", WRONG, ids=lambda m: m.replace(" ", "-"))
def test_a_wrong_cluster_is_refused_alone_and_in_a_job(mistake):
    cluster, job = read("raycluster.yaml"), read("rayjob.yaml")
    WRONG[mistake](cluster["spec"])
    WRONG[mistake](job["spec"]["rayClusterSpec"])
    for manifest in (cluster, job):
        with pytest.raises(ValidationError):
            validate(manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"clusterSelector": {"ray.io/cluster": "kdscale"}},
        {"shutdownAfterJobFinishes": False},
        {"entryPoint": "python"},
        {"submissionMode": "Http"},
        {"backoffLimit": "2"},
        {"apiVersion": "ray.io/v2"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_job_is_refused(change):
    job = read("rayjob.yaml")
    job["spec"].update(change)
    with pytest.raises(ValidationError):
        validate(job)


def test_every_reference_of_the_schema_leads_somewhere():
    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if "$ref" in node else [])
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    resolver = REGISTRY.resolver(f"{BASE}ray.io_v1.yaml")
    found = set(references(SCHEMA))
    assert len(found) > 20
    for reference in found:
        assert resolver.lookup(reference).contents

    def objects(node):
        if isinstance(node, dict):
            yield from ([node] if node.get("type") == "object" else [])
            for value in node.values():
                yield from objects(value)

    assert all("additionalProperties" in node for node in objects(SCHEMA["$defs"]))


def test_the_job_has_the_cluster_of_the_cluster_manifest():
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"] == cluster_spec()


def test_the_entry_point_of_the_job_is_one_and_its_settings_are_known():
    program, flag, module, config, *rest = read("rayjob.yaml")["spec"]["entrypoint"].split()
    assert (program, flag) == ("python", "-m")
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    args = _parser().parse_args(["run", config, *rest])
    cluster = load_config(ROOT / config, args.set).cluster
    groups = cluster_spec()["workerGroupSpecs"]
    # Each kind of worker has a group that fits it, and the group has enough nodes.
    for count, cpus, gpus, labels in (
        (cluster.workers, cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.worker_labels),
        (cluster.scorers, cluster.cpus_per_scorer, cluster.gpus_per_scorer, cluster.scorer_labels),
    ):
        (group,) = (g for g in groups if labels.items() <= g["labels"].items())
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["maxReplicas"] >= count
        assert int(limits["nvidia.com/gpu"]) >= gpus and int(limits["cpu"]) > cpus


def test_scoring_is_on_spot_and_training_is_not():
    selectors = {
        group["groupName"]: group["template"]["spec"]["nodeSelector"]
        for group in cluster_spec()["workerGroupSpecs"]
    }
    kinds = {
        name: selector["eks.amazonaws.com/capacityType"] for name, selector in selectors.items()
    }
    assert kinds == {"train-gpu": "ON_DEMAND", "score-gpu-spot": "SPOT", "data-cpu-spot": "SPOT"}
    for group in cluster_spec()["workerGroupSpecs"]:
        assert group["minReplicas"] == 0  # nothing runs, and costs, while no job asks for it
        spot = any(t["key"] == "spot" for t in group["template"]["spec"]["tolerations"])
        assert spot == (kinds[group["groupName"]] == "SPOT")


def test_pods_share_no_disk_and_hold_no_secret():
    for pod in pods():
        assert pod["serviceAccountName"] == read("access.yaml")["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
        for container in (c for key in CONTAINERS for c in pod.get(key, [])):
            assert not any("AWS" in e["name"] or "TOKEN" in e["name"] for e in container["env"])
            (source,) = container["envFrom"]
            assert source == {"secretRef": {"name": "kdscale-s3", "optional": True}}
    assert cluster_spec()["authOptions"] == {"mode": "token"}


def test_ray_up_takes_the_aws_file(monkeypatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    kinds = config["available_node_types"]
    market = {
        name: kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        for name, kind in kinds.items()
    }
    assert market == {
        "head": None, "train_gpu": None, "score_gpu_spot": "spot", "data_cpu_spot": "spot",
    }  # fmt: skip
    assert {k["node_config"]["IamInstanceProfile"]["Name"] for k in kinds.values()} == {"CHANGE-ME"}
    starts = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert all(command.startswith("RAY_AUTH_MODE=token ray start") for command in starts)
    config["available_node_typs"] = config.pop("available_node_types")
    with pytest.raises(Exception, match="available_node_typ"):
        validate_config(prepare_config(config))


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, its arguments) of cluster/Dockerfile, continued lines joined."""
    lines = [
        line
        for line in (CLUSTER / "Dockerfile").read_text().splitlines()
        if not line.startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_image_is_built_from_files_that_are_there_and_sent():
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    instructions = dockerfile()
    assert instructions[0][0] == "FROM" and {name for name, _ in instructions} <= known
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    for name, rest in instructions:
        if name == "COPY":
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source


def test_the_image_has_the_python_and_the_user_that_it_should():
    instructions = dockerfile()
    (image,) = (rest for name, rest in instructions if name == "FROM")
    assert image == "python:3.11-slim"
    users = [rest for name, rest in instructions if name == "USER"]
    assert users == ["ray"]
    created = next(rest for name, rest in instructions if name == "RUN" and "useradd" in rest)
    assert f"--uid {pods()[0]['securityContext']['runAsUser']} ray" in created
    # Whatever runs after the last USER, and so the container, is not root.
    names = [name for name, _ in instructions]
    assert "RUN" not in names[names.index("USER") :]
    images = {c["image"] for pod in pods() for c in pod["containers"]}
    aws = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["docker"]["image"]
    assert images == {aws}


def test_the_versions_are_those_of_the_project():
    import ray

    import kdscale

    assert cluster_spec()["rayVersion"] == ray.__version__
    assert pods()[0]["containers"][0]["image"].endswith(f":{kdscale.__version__}")
