"""The proof of a refactor runs every YAML, reads losses exactly, continues where it stopped, and names what differs."""

import json
from pathlib import Path

import pytest

from benchmarks.unchanged import differences, evaluations, hashes, main, run
from benchmarks.unchanged_jobs import jobs

ROOT = Path(__file__).parents[2]
LOSSES = """
from pathlib import Path
folder = Path("lightning_logs/task/version_0")
folder.mkdir(parents=True)
(folder / "metrics.csv").write_text("step,train/loss,val/loss\\n0,0.1,\\n0,,7\\n1,0.30000000000000004,\\n")
Path("out.json").write_text("[]")
Path("../count").open("a").write("x")
"""


def test_every_yaml_and_every_generator_is_run_or_left_out_for_a_reason(tmp_path):
    found = jobs(ROOT)
    overlays = {f"introspection+{path.stem}" for path in (ROOT / "configs" / "introspection").glob("*.yaml")}
    tasks = {"context_ablation", "feature_descriptions", "introspection", "steering"}
    assert tasks | overlays | {f"{task}+debug" for task in tasks} | {"context_ablation+ddp"} <= found.keys()
    scripts = {Path(word) for job in found.values() for command in job for word in command if word.endswith(".py")}
    assert len(scripts) >= 6
    assert all(script.is_file() for script in scripts)
    (tmp_path / "configs").mkdir()
    for name in ("ddp", "fsdp"):
        (tmp_path / "configs" / f"{name}.yaml").write_text("trainer: {}")
    (tmp_path / "configs" / "context_ablation.yaml").write_text("data: {class_path: a.B}")
    (tmp_path / "configs" / "unknown.yaml").write_text("trainer: {}")
    with pytest.raises(SystemExit, match=r"unknown\.yaml: is neither run nor in NOT_RUN"):
        jobs(tmp_path)


@pytest.mark.slow
def test_a_job_is_recorded_to_the_last_digit_and_never_run_twice(tmp_path):
    for _ in range(2):
        found = run([["-c", LOSSES]], tmp_path / "job", tmp_path, tmp_path / "cache")
        assert found["losses"] == ["0.1", "0.30000000000000004"]
        assert list(found["files"]) == ["out.json"]
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.slow
def test_a_job_that_fails_says_why_and_is_run_again(tmp_path):
    for _ in range(2):
        with pytest.raises(SystemExit, match="no room\njob: exit code 1 of python"):
            run([["-c", "import sys; sys.exit('no room')"]], tmp_path / "job", tmp_path, tmp_path / "cache")


def test_files_that_hold_no_results_are_not_hashed(tmp_path):
    for name in ("toy/weights.bin", "toy.lock", "examples/a/b.bin", "figure.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(hashes(tmp_path)) == ["toy/weights.bin"]


def test_the_first_step_that_differs_is_named(tmp_path, capsys):
    before = {"losses": {"a": ["0.5", "0.25", "0.125"], "b": ["1.0"]}, "files": {"cache": {"toy": "1f"}}}
    after = {"losses": {"a": ["0.5", "0.26", "0.13"], "b": ["1.0"]}, "files": {"cache": {"toy": "2f"}, "x": {"y": "3"}}}
    assert list(differences(before, after)) == [
        "losses a, step 1: 0.25 before, 0.26 after",
        "files cache toy: 1f before, 2f after",
        "files x: absent before, 1 values after",
    ]
    paths = [str(tmp_path / "before.json"), str(tmp_path / "after.json")]
    for path, content in zip(paths, (before, after), strict=True):
        Path(path).write_text(json.dumps(content))
    assert main(["--compare", *paths]) == 1
    assert "a, step 1: 0.25 before, 0.26 after" in capsys.readouterr().out
    assert main(["--compare", paths[0], paths[0]]) == 0
    shorter = {**before, "losses": {"a": ["0.5"], "b": ["1.0"]}}
    assert list(differences(before, shorter)) == ["losses a: 3 steps before, 1 after"]


def test_evaluations_are_the_same_wherever_the_cache_is(tmp_path):
    for name in ("one", "other"):
        run_folder = tmp_path / name / "lightning_logs" / "task" / "version_0"
        run_folder.mkdir(parents=True)
        summary = {
            "split": "validation",
            "n": 2,
            "metrics": {"exact_match": {"value": 0.5}},
            "baselines": {},
            "seconds": name,
        }
        model = {"base": "toy", "checkpoint": name}
        data = {"path": name, "features": f"{tmp_path}/cache-{name}/layer_0.safetensors"}
        (run_folder / "summary.json").write_text(json.dumps({**summary, "model": model, "data": data}))
        (run_folder / "predictions.jsonl").write_text("{}")
    one, other = (evaluations(tmp_path / name, tmp_path / f"cache-{name}") for name in ("one", "other"))
    assert one == other
    assert one["validation"]["metrics"] == {"exact_match": {"value": 0.5}}
