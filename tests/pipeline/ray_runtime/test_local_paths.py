"""Machines as they are: long temporary folders, odd characters in paths, a user without a name or a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from ast_core.errors import UserError
from pipeline.cli import user_environment
from pipeline.ray_runtime import local_paths
from pipeline.ray_runtime.local_paths import LONGEST_SOCKET, open_local_paths

ROOT = Path(__file__).resolve().parents[3]
USER = 54321
START = """
import os
import ray
from pipeline.ray_runtime import connection
with connection.connect("", 1):
    folder = ray._private.worker.global_worker.node.get_session_dir_path()
    ray.get(ray.remote(lambda: os.getpid()).remote())
    print(len(os.fsencode(folder)), os.path.realpath(folder), flush=True)
"""
NAMELESS = """
import getpass, os
from pipeline.cli import program
import torch._dynamo, matplotlib
print(getpass.getuser(), os.access(os.path.expanduser("~"), os.W_OK), os.access(matplotlib.get_cachedir(), os.W_OK))
"""


@pytest.fixture(autouse=True)
def no_ray_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


def test_paths_that_ray_can_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    with open_local_paths("/app") as paths:
        assert (paths.python, paths.checkout, paths.temporary) == (sys.executable, "/app", "/tmp/ray")


@pytest.mark.parametrize(
    "name", ["x" * 90, "My Projects", "cash$HOME", "a#b", "100%", "R&D;(1)", "Müller 日本", "it's"]
)
def test_links_stand_for_other_paths_while_ray_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(sys, "prefix", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
    with open_local_paths(str(folder)) as paths:
        assert Path(paths.temporary).samefile(folder / "ray")
        assert len(paths.temporary + LONGEST_SOCKET) <= 107
        assert Path(paths.python).parents[1].samefile(folder)
        assert Path(paths.checkout).samefile(folder)
        links = [paths.temporary] if name[0] == "x" else [paths.python, paths.checkout, paths.temporary]
        for path in links:
            assert path.isascii()
            assert " " not in path
    assert not any(os.path.lexists(path) for path in links)
    assert (folder / "ray").is_dir()


def test_a_quote_in_the_path_of_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "__file__", "/home/o'brien/ray/__init__.py")
    with pytest.raises(UserError, match=r"o'brien/ray.*Move the virtual environment"), open_local_paths("/app"):
        pass


def test_a_temporary_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match=rf"TMPDIR is {tmp_path}/file, but"), open_local_paths("/app"):
        pass


def test_a_machine_without_a_place_for_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 90)))
    monkeypatch.setattr(local_paths, "_FOLDERS", (str(tmp_path / "missing"),))
    monkeypatch.setattr(local_paths.tempfile, "gettempdir", lambda: str(tmp_path / "missing"))
    with pytest.raises(UserError, match="Set TMPDIR to a short path"), open_local_paths("/app"):
        pass


@pytest.mark.ray
@pytest.mark.long  # the training of tests/reliability/test_driver.py runs under such a folder, too
def test_ray_starts_under_a_long_temporary_folder(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(long)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    length, folder = done.stdout.split()
    assert int(length) < 80
    assert folder.startswith(f"{long}/ray/session_")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
@pytest.mark.parametrize(
    "home",
    ["/nonexistent", pytest.param("/root", marks=pytest.mark.long), pytest.param(None, marks=pytest.mark.long), "/"],
)
def test_a_user_without_a_name_or_a_home_gets_both(home: str | None, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in {"USER", "LOGNAME", "HOME", "XDG_CACHE_HOME"}}
    # The capability lets the user read Python where only root may, and nothing else.
    user = f"setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps +dac_read_search --ambient-caps"
    tmp_path.chmod(0o777)
    done = subprocess.run(
        [*user.split(), "+dac_read_search", sys.executable, "-c", NAMELESS], cwd=ROOT, text=True, check=True,
        stdout=subprocess.PIPE, env=environment | {"PYTHONPATH": str(ROOT)} | ({} if home is None else {"HOME": home}),
    )  # fmt: skip
    name, own_home, cache = done.stdout.split()
    assert (name, cache) == (f"uid-{USER}", "True")
    assert own_home == str(home != "/")  # a home that can be read stays


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "open folder"])
def test_caches_are_never_in_what_another_user_put_in_their_place(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = tmp_path / f"ast-pipeline-{os.getuid()}"
    if kind == "file":
        name.touch()
    elif kind == "open folder":
        name.mkdir()
        name.chmod(0o777)
    else:
        name.symlink_to(tmp_path / ("missing" if kind == "dangling link" else "."))
    monkeypatch.setattr(user_environment.tempfile, "tempdir", str(tmp_path))
    for variable in ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "missing"))
    monkeypatch.delenv("MPLCONFIGDIR")
    user_environment.complete_environment()
    home = Path(os.environ["HOME"])
    assert (home.parent, home != name) == (tmp_path, True)
    assert home.stat().st_mode & 0o777 == 0o700
    assert os.environ["MPLCONFIGDIR"] == str(home / "matplotlib")


def test_the_environment_of_an_ordinary_user_does_not_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    user_environment.complete_environment()
    assert dict(os.environ) == before
