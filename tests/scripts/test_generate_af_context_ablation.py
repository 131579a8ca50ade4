"""The command that users call: its flags, wrong input, and being killed."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from afintro.errors import UserError
from afintro.generation import run_folder
from afintro.tasks.context_ablation.command import main
from afintro.tasks.context_ablation.records import read_records
from tests.forked import Forked
from tests.lm.made_adapters import named_after_its_base

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate_af_context_ablation.py"
OUTPUTS = {"settings.json", "train.json", "test.json", "summary.json"}


@pytest.fixture(scope="module")
def model(model_directories):
    """A random byte-level Llama of 512 positions."""
    return model_directories["llama"]


def samples_file(path, count):
    """A file in the shape of the real ones."""
    rng = random.Random(count)
    rows = [
        {
            "text": f"Sample {i}: {'please ' * rng.randrange(8)}help me.",
            "label": rng.choice(["aligned", "alignment_faking"]),
        }
        for i in range(count)
    ]
    path.write_text(json.dumps({"metadata": {"source": "test"}, "samples": rows}))
    return path


@pytest.fixture
def call(model, classes_of_any_text, tmp_path, capsys):
    """Calls main with small settings and any more flags; gives exit code, standard output and standard error."""
    samples = samples_file(tmp_path / "samples.json", 9)

    def run(**flags):
        values = {
            "input_path": samples, "output_dir": tmp_path / "out", "model_name": model, "batch_size": 4,
            "max_new_tokens": 6, "holdout": 2, "control_samples": 3, "device": "cpu",
            "labeler": classes_of_any_text,
        } | flags  # fmt: skip
        words = [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def contents(folder):
    """Every file below the folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start(samples, output, model, *more):
    """The script in a process of its own, on one thread."""
    given = {"input_path": samples, "output_dir": output, "model_name": model}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return Forked(str(SCRIPT), [*words, *map(str, more)], ROOT, {**os.environ, "OMP_NUM_THREADS": "1"})


class TestRun:
    def test_writes_the_files_and_prints_the_table(self, call, tmp_path):
        code, out, _ = call()
        assert code == 0
        assert {path.name for path in (tmp_path / "out").iterdir()} == OUTPUTS
        assert len(read_records(str(tmp_path / "out" / "train.json"))) == 7
        assert len(read_records(str(tmp_path / "out" / "test.json"))) == 2
        assert "9 scenarios" in out
        for name in ("behavior_changed", "compliance_gap", "noise_floor_string", "placebo_behavior", "cue_effect"):
            assert name in out
        assert "monitored: " in out

    def test_an_adapter_on_the_base_that_is_given(self, call, model, tmp_path):
        expected = named_after_its_base(call, model, tmp_path)
        assert read_records(str(tmp_path / "out" / "train.json"))[0].provenance["model"] == expected

    def test_input_is_only_read(self, call, tmp_path):
        """Input files belong to their owners: nothing is written beside them either."""
        owned = tmp_path / "owned"
        owned.mkdir()
        path = samples_file(owned / "samples.json", 5)
        path.chmod(0o444)
        before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
        owned.chmod(0o555)
        try:
            assert call(input_path=path)[0] == 0
        finally:
            owned.chmod(0o755)
        assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
        assert [found.name for found in owned.iterdir()] == ["samples.json"]

    def test_again_reuses_what_is_there(self, call, tmp_path, caplog):
        caplog.set_level("INFO")
        first = call()
        before = contents(tmp_path / "out")
        assert call()[:2] == first[:2]
        assert "reusing" in caplog.text
        assert contents(tmp_path / "out") == before

    def test_other_settings_are_refused_and_nothing_changes(self, call, tmp_path):
        call()
        before = contents(tmp_path / "out")
        code, _, err = call(max_new_tokens=7)
        assert code == 2
        assert "max_new_tokens: was 6, is 7" in err
        code, _, err = call(holdout=3)
        assert code == 2
        assert "'test': 2" in err
        assert "'test': 3" in err
        assert contents(tmp_path / "out") == before

    def test_limit_takes_the_first_samples(self, call, tmp_path):
        assert call(limit=4)[0] == 0
        made = [
            record.scenario
            for split in ("train", "test")
            for record in read_records(str(tmp_path / "out" / f"{split}.json"))
        ]
        texts = [row["text"] for row in json.loads((tmp_path / "samples.json").read_text())["samples"]]
        assert made == texts[:4]

    def test_same_samples_in_another_format_give_the_same_files(self, call, tmp_path):
        lines = tmp_path / "samples.jsonl"
        rows = json.loads((tmp_path / "samples.json").read_text())["samples"]
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        call()
        call(input_path=lines, output_dir=tmp_path / "other")
        assert contents(tmp_path / "other") == contents(tmp_path / "out")

    def test_a_peft_adapter_directory_is_a_model_name(self, call, tmp_path, model):
        from peft import LoraConfig, get_peft_model

        base = AutoModelForCausalLM.from_pretrained(model)
        wrapped = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        wrapped.save_pretrained(tmp_path / "adapter")
        assert call(model_name=tmp_path / "adapter")[0] == 0
        call(output_dir=tmp_path / "base")
        adapted, plain = (
            [record.monitored_output for record in read_records(str(tmp_path / name / "train.json"))]
            for name in ("out", "base")
        )
        assert adapted != plain


def write(text, name="bad.json"):
    """A file of that text."""

    def make(folder):
        (folder / name).write_text(text)
        return {"input_path": folder / name}

    return make


WRONG = {  # what is wrong: (flags, what the message names)
    "missing file": (lambda folder: {"input_path": folder / "absent.json"}, "absent.json: does not exist"),
    "missing dataset": (lambda folder: {"input_path": "nobody/no-such-data"}, "nobody/no-such-data"),
    "malformed JSON": (write('[{"text": "a"},\n {"text": }]'), "bad.json, line 2: is malformed JSON"),
    "malformed JSONL": (write('{"text": "a"}\n{"text"\n', "bad.jsonl"), "bad.jsonl, line 2: is malformed JSON"),
    "empty file": (write(""), "is empty"),
    "no sample": (write('{"samples": []}'), "holds no sample"),
    "no list": (write('{"text": "a"}'), "holds no list of records"),
    "no text": (write('[{"text": "a"}, {"label": "aligned"}]'), "record 1: has no field 'text'"),
    "wrong type of text": (write('[{"text": "a"}, {"text": ["b"]}]'), "record 1: field 'text' is list"),
    "wrong type of label": (write('[{"text": "a", "label": 3}]'), "record 0: field 'label' is int"),
    "empty text": (write('[{"text": "a"}, {"text": "b"}, {"text": " "}]'), "record 2: field 'text' is empty"),
    "holdout too large": (lambda folder: {"holdout": 9}, "9 of 9 samples leave none for training"),
    "negative holdout": (lambda folder: {"holdout": -1}, "--holdout"),
    "batch size 0": (lambda folder: {"batch_size": 0}, "--batch_size"),
    "no new tokens": (lambda folder: {"max_new_tokens": 0}, "--max_new_tokens"),
    "unknown model": (lambda folder: {"model_name": "nobody/no-such-model"}, "'nobody/no-such-model'"),
    "output folder is a file": (lambda folder: {"output_dir": folder / "samples.json"}, "samples.json"),
    "output folder below a file": (lambda folder: {"output_dir": folder / "samples.json" / "x"}, "samples.json"),
    "no model in folder": (lambda folder: {"model_name": folder}, "cannot be loaded"),
    "prompt longer than the context": (write(json.dumps([{"text": "a"}] * 3 + [{"text": "b" * 600}])), "sample 3"),
    "limit 0": (lambda folder: {"limit": 0}, "--limit"),
    "negative limit": (lambda folder: {"limit": -3}, "--limit"),
    "negative control samples": (lambda folder: {"control_samples": -1}, "--control_samples"),
    "half a character": (write('[{"text": "a"}, {"text": "b"}, {"text": "\\ud83d"}]'), "record 2"),  # half a pair
}


class TestWrongInput:
    @pytest.mark.parametrize("what", WRONG)
    def test_two_lines_exit_code_2_nothing_written(self, call, tmp_path, what):
        make, names = WRONG[what]
        flags = make(tmp_path)
        before = contents(tmp_path)
        code, out, err = call(**flags)
        assert code == 2
        assert out == ""
        lines = err.rstrip("\n").split("\n")
        assert len(lines) == 2, err
        assert lines[0].startswith("error: ")
        assert names in lines[0]
        assert lines[1].startswith("  remedy: ")
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("flags", [{"dtype": "int8"}, {"batch_size": "four"}, {"unknown": 1}, {"input_path": None}])
    def test_flags_are_checked_by_their_parser(self, call, tmp_path, flags):
        code, _, err = call(**flags)
        assert code == 2
        assert "usage:" in err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("write", [0, 1, 3])
    def test_a_full_disk_is_an_error_and_loses_nothing(self, call, tmp_path, monkeypatch, write):
        """With room again, the run goes on to the same files."""
        call(output_dir=tmp_path / "whole")
        fsync, count = os.fsync, iter(range(99))

        def full(descriptor):
            if next(count) >= write:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            code, _, err = call()
        assert code == 2
        assert "error: " in err
        assert "No space left on device" in err
        assert "Traceback" not in err
        assert call()[0] == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_an_error_does_not_hang_on_the_progress_bar(self, call, monkeypatch):
        """A bar that is not closed on the way out ends in "0/9 [00:00<?]error: ...", and is drawn again after it."""

        write_json = run_folder.write_json

        def full(path, content):
            if path.parent.name == "partial":
                raise UserError("cannot be written", where=str(path), remedy="make room")
            write_json(path, content)

        monkeypatch.setattr(run_folder, "write_json", full)
        code, _, err = call()
        assert code == 2
        assert [line for line in err.splitlines() if line.startswith("error: ")]
        assert err.splitlines()[-1] == "  remedy: make room"

    def own_process(self, samples, output, model):
        """What in-process calls cannot see: what libraries log through handlers of their own."""
        process = start(samples, output, model, "--holdout", 1)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert out == ""
        return err.rstrip("\n").split("\n")

    @pytest.mark.slow
    def test_an_unknown_model_in_a_process_of_its_own(self, tmp_path):
        lines = self.own_process(samples_file(tmp_path / "samples.json", 5), tmp_path / "out", "nobody/no-such-model")
        assert len(lines) == 2, lines
        assert lines[0].startswith("error: model 'nobody/no-such-model'")
        assert "HF_HUB_OFFLINE" in lines[1]
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_a_long_prompt_in_a_process_of_its_own(self, model, tmp_path):
        """Without the tokenizer's own warning of "indexing errors", a third line that is not true."""
        path = tmp_path / "long.json"
        path.write_text(json.dumps([{"text": "short"}, {"text": "long " * 200}]))
        lines = self.own_process(path, tmp_path / "out", model)
        assert "error: sample 1: needs" in "\n".join(lines)
        assert len(lines) == 2, lines

    def test_help_names_every_flag(self, capsys):
        with pytest.raises(SystemExit) as error:
            main(["--help"])
        assert error.value.code == 0
        out = capsys.readouterr().out
        for flag in ("input_path", "output_dir", "model_name", "batch_size", "max_new_tokens", "holdout", "split"):
            assert f"--{flag}" in out


@pytest.mark.long
class TestKilled:
    """kill -9 at three moments, then a run to the end: the same bytes as without."""

    FLAGS = ("--batch_size", 8, "--max_new_tokens", 12, "--holdout", 50, "--control_samples", 30)

    @staticmethod
    def wait(process, condition):
        """Until it holds, or the process has ended."""
        while process.poll() is None and not condition():
            time.sleep(0.005)

    def test_and_run_again_gives_the_same_bytes(self, model, classes_of_any_text, tmp_path):
        samples, flags = samples_file(tmp_path / "samples.json", 260), (*self.FLAGS, "--labeler", classes_of_any_text)
        whole = start(samples, tmp_path / "whole", model, *flags)
        output = tmp_path / "run"
        rng = random.Random()
        moments = [
            (lambda: (output / "settings.json").exists(), 0.3),  # before or within the first chunk
            (lambda: (output / "partial" / "0000000.json").exists(), 0.4),  # within the second
            (lambda: (output / "partial" / "0000100.json").exists(), 0.1),
        ]
        states = []
        for condition, jitter in moments:
            process = start(samples, output, model, *flags)
            self.wait(process, condition)
            time.sleep(rng.uniform(0, jitter))
            process.send_signal(signal.SIGKILL)
            assert process.wait(timeout=20) == -signal.SIGKILL, "it was over before it could be killed"
            assert not (output / "summary.json").exists()
            states.append(sorted(path.name for path in (output / "partial").glob("0*")))
        assert states[-1][:2] == ["0000000.json", "0000100.json"], states
        last = start(samples, output, model, *flags)
        for process in (whole, last):
            _, err = process.communicate(timeout=200)
            assert process.returncode == 0, err
        for name in sorted(OUTPUTS):
            one, other = (hashlib.sha256((folder / name).read_bytes()) for folder in (tmp_path / "whole", output))
            assert one.hexdigest() == other.hexdigest(), (name, states)
        assert not (output / "partial").exists()
        assert len(json.loads((output / "train.json").read_text())) == 210
        shutil.rmtree(output)


def test_scenario_ids_of_the_samples_are_kept_in_the_records(call, tmp_path):
    """What the name of a scenario is for: texts about one name share it, and other texts have an id by their text."""
    rows = [
        {"text": f"Help {'Cordale' if i < 4 else 'me'} with {i}."} | ({"scenario_id": "Cordale"} if i < 4 else {})
        for i in range(6)
    ]
    (tmp_path / "named.json").write_text(json.dumps(rows))
    assert call(input_path=tmp_path / "named.json", output_dir=tmp_path / "named")[0] == 0
    records = [r for name in ("train", "test") for r in read_records(tmp_path / "named" / f"{name}.json")]
    assert [record.scenario_id == "Cordale" for record in records] == [True] * 4 + [False] * 2
    assert len({record.scenario_id for record in records}) == 3
    assert len({record.uid for record in records}) == 6
    assert [record.scenario for record in records] == [row["text"] for row in rows]
