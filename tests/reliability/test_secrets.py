"""A password in the tracker's address never appears in what a run writes, logs or prints, even if it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psycopg
import pytest
from launches import training_flags
from prepared import write_shards
from servers import postgres

from ast_core.errors import UserError
from pipeline import combine, evaluate, predict, register, report, train
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.kubeflow_steps.plan import Plan
from pipeline.tracking import mlflow_store, runs

CANARY = "Canary%2Fpass-4711"
"""Password with a slash, percent-encoded as in URIs; neither the encoded nor the decoded form may appear."""
SECRET_PARTS = ("Canary", "pass-4711")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run the test in its own folder, where MLflow puts artifacts, and without a login in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def flags(tmp_path: Path) -> Callable[[str], list[str]]:
    write_shards(tmp_path / "shards", {"train": 12, "test": 6})
    own = training_flags(tmp_path, "run", epochs=2)
    own[own.index("--workers") + 1] = "1"
    own[own.index("--augment.freq-mask-bins") :] = [
        "--augment.freq-mask-bins", "4", "--augment.time-mask-frames", "8", "--optim.epochs", "2",
        "--optim.batch-size", "6", "--optim.average-first-epoch", "1",
    ]  # fmt: skip
    return lambda tracking: [tracking if word.startswith("sqlite:") else word for word in own]


def select_flags(flags: list[str], *sections: str) -> list[str]:
    """Return the flags of a stage whose settings have only these sections of a recipe."""
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return [w for pair in pairs if "." not in pair[0] or pair[0][2:].split(".")[0] in sections for w in pair]


def stages(flags: list[str], audio: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "train", lambda: train.main(flags)
    yield "combine", lambda: combine.main([*select_flags(flags, "optim"), "--ensemble.seeds", "0"])
    yield "evaluate", lambda: evaluate.main(select_flags(flags, "data"))
    yield "register", lambda: register.main([*select_flags(flags), "--model-name", "canary"])
    yield "report", lambda: report.main(select_flags(flags, "data"))
    store = flags[flags.index("--tracking") + 1]
    yield "predict", lambda: predict.main([str(audio), "--model", "models:/canary@champion", "--tracking", store])


def require_hidden(text: str, where: object) -> None:
    for part in SECRET_PARTS:
        assert part not in text, f"{where}: {text[max(0, text.find(part) - 300) :][:400]}"


@pytest.mark.server
@pytest.mark.timeout(300)
def test_a_run_writes_and_prints_everything_without_the_password(
    tmp_path: Path, flags, save_tone, capfd: pytest.CaptureFixture[str], without_ray, measured
) -> None:
    """Check output, files and tables. Workers of Ray, which do not know the tracker, are left out."""
    audio = save_tone(tmp_path / "tone.wav")
    with postgres(tmp_path.parent / f"{tmp_path.name}-postgres.log") as database:
        address = database.replace("mlflow@", f"mlflow:{CANARY}@")
        for _, stage in stages(flags(address), audio):
            stage()
        dumped, tables = "", 0
        with psycopg.connect(database) as connection:
            for (table,) in connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            ).fetchall():
                dumped += str(connection.execute(f'SELECT * FROM "{table}"').fetchall())
                tables += 1
    assert "mlflow:***@127.0.0.1" in dumped  # the address was logged as a parameter, without the password
    require_hidden(dumped, "the store")
    output = capfd.readouterr()
    assert "mlflow:***@127.0.0.1" in output.out  # the printed command that opens the registry
    require_hidden(output.out + output.err, "the output")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in files:
        require_hidden(path.read_bytes().decode("latin-1"), path)
    mlflow.set_tracking_uri("")
    measured("security", files=len(files), tables=tables, characters_shown=len(output.out + output.err))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{CANARY}@127.0.0.1:9",
        f"postgresql://user:{CANARY}@127.0.0.1:9/db",
        f"nosuchscheme://user:{CANARY}@127.0.0.1:9/db",
        f"sqlite:////proc/no/{'x' * 300}?password={CANARY}",
    ],
)
def test_errors_of_the_tracker_do_not_print_the_password(
    address: str, flags, save_tone, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch, measured
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    by_name = dict(stages(flags(address), save_tone(tmp_path / "tone.wav")))
    failed = 0
    for name in ("report", "predict"):  # report continues without a tracker, predict cannot
        try:
            by_name[name]()
        except SystemExit as stopped:
            failed += stopped.code == 1
    assert failed
    with runs.start_run("test", "train", {}, {}) as run_id:
        assert not run_id
    output = capfd.readouterr()
    assert "MLflow" in output.err
    require_hidden(output.out + output.err, address)
    measured("security", address=address.partition(":")[0], stages_failed=failed)


def test_settings_hide_the_password_and_a_kubeflow_plan_refuses_it(flags) -> None:
    settings = parse_settings(TrainSettings, None, flags(f"http://user:{CANARY}@host"))
    assert CANARY in settings.tracking
    require_hidden(repr(settings), "repr")
    values = {"recipe": "demo", "data_source": "/d", "run_dir": "/r", "experiment": "", "model_name": "", "workers": 0}
    plan = Plan(**values, tracking=settings.tracking, changes={}, ray_cluster="ast", ray_job="{}")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD"):
        plan.resolve()


def test_a_servers_login_moves_from_the_address_to_the_environment(tmp_path: Path) -> None:
    mlflow_store.open_store(f"http://user:{CANARY}@127.0.0.1:9")
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:9"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "user"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "Canary/pass-4711"
    mlflow_store.open_store("http://127.0.0.1:9")  # another server must not receive the login
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


@pytest.mark.parametrize(
    "uri", ["s3://bucket/p?secret_key=Canary", "s3://KEY:Canary@bucket/p", "gs://b/p?credential=Canary"]
)
def test_a_store_with_keys_is_refused_without_showing_them(uri: str, flags, capfd, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train.main([*flags("sqlite:///x.db"), "--storage", uri])
    output = capfd.readouterr()
    assert "holds keys" in output.err
    assert "Canary" not in output.out + output.err
    assert not [path for path in (tmp_path / "run").rglob("*") if b"Canary" in path.name.encode()]
