"""A training that may take several drivers, for `test_recovery.py`."""

from __future__ import annotations

import json
import shutil

import yaml

from kdscale.data.dataset import Dataset, Tokens
from kdscale.training.batches import BatchOrder
from kdscale.training.groups import GroupSource
from kdscale.training.metrics import batch_digest
from tests.worlds.clusters import Driver

STEPS = 100
EPOCH = 5  # steps: 60 training queries, 12 a batch
EVERY = 4  # steps from checkpoint to checkpoint: step 20, 40, ... is an epoch's end as well
TRAIN = {
    "max_steps": STEPS,
    "batch_size": 12,
    "micro_tokens": 64,  # several micro-batches a step
    "lr": 1e-3,
    "log_every": 1,
    "checkpoint_every": EVERY,
}


class Run:
    """One training, which may take several drivers."""

    def __init__(self, prepared, folder, address):
        shutil.copytree(prepared / "store", folder / "store")
        self.folder, self._prepared, self._address = folder, prepared, address
        self.uri = str(folder / "store")
        self.drivers = []

    def start(self, workers=2, cpus_per_worker=0.4, **changes):
        config = yaml.safe_load((self._prepared / "config.yaml").read_text())
        config["storage"] = {"uri": self.uri}
        config["teacher"]["train"] = {**TRAIN, **changes}
        config["cluster"] = {
            "address": self._address,
            "workers": workers,
            "cpus_per_worker": cpus_per_worker,
        }
        number = len(self.drivers)
        path = self.folder / f"config-{number}.yaml"
        path.write_text(yaml.safe_dump(config))
        output = self.folder / f"output-{number}"
        self.drivers.append(Driver(output, "-m", "kdscale", "finetune", path))
        return self.drivers[-1]

    def pieces(self, pattern="*"):
        return sorted(p.name for p in self.folder.glob(f"store/.work/teachers/*/{pattern}"))

    def reached(self, step):
        """The newest checkpoint is of this step or a later one."""
        return self.pieces("step-*")[-1:] >= [f"step-{step:09d}"]

    @property
    def artifact(self):
        (path,) = self.folder.glob("store/teachers/*")
        return path

    def weights(self):
        return (self.artifact / "model.safetensors").read_bytes()

    def rows(self):
        return [json.loads(x) for x in (self.artifact / "metrics.jsonl").read_text().splitlines()]

    def facts(self):
        return json.loads((self.artifact / "manifest.json").read_text())["facts"]

    def check_log(self):
        """No step left out or done twice, and no batch, by what was read in each step."""
        rows = self.rows()
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert [row["batches"] for row in rows] == self.expected_batches()
        return rows

    def expected_batches(self):
        (dataset,) = self.folder.glob("store/datasets/*")
        (tokens,) = self.folder.glob("store/tokens/*")
        source = GroupSource(Dataset(dataset), Tokens(tokens), None, 4, None, seed=13)
        order = BatchOrder(source.lengths, 12, seed=13)
        assert order.steps_per_epoch == EPOCH
        return [[batch_digest(order.batch(step)[1])] for step in range(STEPS)]
