import pytest

from kdscale.config import Train
from kdscale.errors import KdscaleError
from kdscale.experiment.lineage import find_student, origin_of
from kdscale.store import open_store
from tests.worlds.artifacts import commit, nothing


def made_of(store, kind, key, inputs, stage="test"):
    return commit(store, kind, key, nothing, inputs=inputs, stage=stage, config={})


def test_students_that_are_not_there(tmp_path):
    store = open_store(str(tmp_path / "store"))
    student = made_of(store, "students", "2l-192-finetune-0123", {})
    for name in (student.key, student.name, student.uri):
        assert find_student(store, name).name == student.name
    with pytest.raises(KdscaleError, match="did you mean 2l-192-finetune-0123"):
        find_student(store, "2l-192-finetune-0124")
    for other in (str(tmp_path / "other" / "students" / "k"), f"{store.uri}/teachers/k"):
        with pytest.raises(KdscaleError, match="is no student of"):
            find_student(store, other)


def test_a_student_of_several_teachers_and_one_that_says_nothing(tmp_path):
    store = open_store(str(tmp_path))
    dataset, tokens = (made_of(store, kind, "d", {}) for kind in ("datasets", "tokens"))
    made = {"dataset": dataset, "tokens": tokens}
    joined = made_of(store, "scores", "s", {}, stage="ensemble")
    student = made_of(store, "students", "a", {**made, "scores": joined})
    with pytest.raises(KdscaleError, match="several teachers"):
        origin_of(store, student)
    silent = origin_of(store, made_of(store, "students", "b", made))
    with pytest.raises(KdscaleError, match="does not say how it was trained"):
        silent.settings(Train())
