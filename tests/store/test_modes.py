"""Who may read what is written: whom the umask says, whatever safetensors and tempfile do."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdscale.progress import Reporter
from kdscale.store.pull_push import pull, push
from tests.worlds.artifacts import manifest_of, put


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def of_one_owner(folder: Path) -> Path:
    """A model as safetensors writes it, in a folder as tempfile makes it, and one below that."""
    made = Path(tempfile.mkdtemp(dir=folder))
    for place in (made, Path(tempfile.mkdtemp(dir=made, prefix="sub"))):
        save_file({"a": torch.ones(2)}, place / "model.safetensors")
        (place / "model.safetensors").chmod(0o600)  # as of safetensors 0.8
        (place / "config.json").write_text("{}")
    return made


def wrong(folder: Path, umask: int) -> dict[str, str]:
    """What below the folder, itself included, has other permissions than the umask's."""
    found = {p: p.stat().st_mode & 0o777 for p in (folder, *folder.rglob("*"))}
    return {
        str(p): oct(mode)
        for p, mode in found.items()
        if mode != (0o777 if p.is_dir() else 0o666) & ~umask
    }


def test_an_artifact_and_its_copies_have_the_modes_of_the_umask(store, tmp_path, umask):
    with store.staging("students", "k") as out:
        made = of_one_owner(out)
        assert wrong(made, 0o022)  # else this tests nothing
        assert store.commit(out, "students", "k", manifest_of(out))
    pull(f"{store.uri}/students/k", tmp_path / "pulled", Reporter())
    push(tmp_path / "pulled", f"{store.uri}/students/pushed", Reporter())
    for folder in (
        store.find("students", "k").path,
        store.find("students", "pushed").path,
        tmp_path / "pulled",
    ):
        assert wrong(folder, umask) == {}


def test_a_piece_of_a_workspace_has_the_modes_of_the_umask(store, tmp_path, umask):
    workspace = store.workspace("students", "k")
    assert workspace.publish(of_one_owner(tmp_path), "step-1")
    assert wrong(workspace.fetch("step-1"), umask) == {}


def test_whole_stores_have_no_folder_that_only_its_owner_may_enter(store, tmp_path):
    before = os.umask(0o002)
    try:
        put(store, "students", "k", of_one_owner)
        store.workspace("students", "k").publish(of_one_owner(tmp_path), "step-1")
        store.workspace("students", "k").fetch("step-1")
    finally:
        os.umask(before)
    assert wrong(store.disk, 0o002) == {}
