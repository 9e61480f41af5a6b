"""Tables of trials made by hand, with answers that are known."""

import numpy as np

from kdscale.advice.candidates import Shared
from kdscale.advice.decide import Needs, advise
from kdscale.evaluation.trials import TRIALS, trial_rows, write_trials

QUERIES = 400
DAY, HOUR = 86_400.0, 3_600.0
TEACHER = np.linspace(0.3, 0.9, QUERIES)
ABOUT = {"candidates": 50, "train_queries": 2_000, "data": "made", "split": "test"}


def student(strategy, shape, drop, ms, train_s, budget=1.0, seed=1, noise=0.02, **fields):
    """Rows of a student that loses exactly `drop` on the mean."""
    rng = np.random.default_rng([seed, len(strategy), ord(shape[0])])
    error = rng.normal(0, noise, QUERIES)
    values = TEACHER - drop + error - error.mean()
    return trial_rows(
        {"nDCG@10": values, "AP": values / 2}, system=f"{strategy}/{shape}", strategy=strategy,
        shape=shape, variant="default", budget=budget, seed=seed, ms=ms, train_seconds=train_s,
        speedup=None if ms is None else 200 / ms,
        artifact=f"students/{shape}-{strategy}-{budget}-{seed}", **fields,
    )  # fmt: skip


def teacher():
    values = {"nDCG@10": TEACHER, "AP": TEACHER / 2}
    return trial_rows(values, system="teacher", artifact="teachers/t-1")


SMALL = student("finetune", "2l-128", 0.04, 3, 60)
MIDDLE = student("lm_distill_finetune", "3l-192", 0.015, 8, 100)
LARGE = student("lm_distill_ranker_distill", "4l-312", 0.002, 20, 600)
NO_LM = student("ranker_distill", "4l-312", 0.004, 20, 500)
SHARED = {
    table["artifact"][0].as_py(): Shared(lm_s=7_200.0, scores_s=3_600.0)
    for table in (SMALL, MIDDLE, LARGE, NO_LM)
}
WHOLE = [teacher(), SMALL, MIDDLE, LARGE, NO_LM]


def ask(tables, about=ABOUT, shared=SHARED, **needs):
    import pyarrow as pa

    table = pa.concat_tables([TRIALS.empty_table(), *tables])
    return advise(table, about, Needs(**needs), shared)


def write(path, tables=WHOLE):
    write_trials(path, list(tables), **ABOUT)
    return path
