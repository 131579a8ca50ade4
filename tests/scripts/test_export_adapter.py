"""The command that exports an adapter: stock PEFT, a card that says what it is and is not, and an upload only when asked."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import HFValidationError
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from afintro.explainer.checkpoint import read_checkpoint
from afintro.explainer.module import ExplainerModule
from afintro.lm.injection import Injection, VectorSpace
from afintro.lm.load import load_model
from afintro.lm.lora import Lora
from afintro.study.matrix import weights_hash
from tests.conftest import save_small_model
from tests.lm.made_adapters import lora, save_adapter

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "export_adapter.py"
SECRET = "hf_doNotShowThisValue"
INTROSPECTION = {
    "class_path": "afintro.tasks.introspection.Introspection",
    "init_args": {"style": "vague", "label": "coin"},
}
RECORDS = "/home/someone/secret/records.json"
ABLATION = {
    "class_path": "afintro.tasks.context_ablation.ContextAblation",
    "init_args": {"train_path": RECORDS, "heldout": [RECORDS]},
}
ESTIMATE = {"value": 0.75, "ci_low": 0.5, "ci_high": 0.875, "n": 40}


@pytest.fixture
def module():
    """The script, imported from where it lies."""
    spec = importlib.util.spec_from_file_location("export_adapter", SCRIPT)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def call(module, monkeypatch, capsys):
    """Calls main with flags; gives exit code and both outputs."""
    monkeypatch.setenv("HF_TOKEN", SECRET)

    def run(*words):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        capsys.readouterr()
        code = module.main()
        printed = capsys.readouterr()
        assert SECRET not in printed.out + printed.err
        return code, printed.out, printed.err

    return run


def trained(run, model, data=INTROSPECTION, dtype="float32", vectors=None):
    """A run's folder with a checkpoint whose adapter changes the answers, as ``fit`` leaves it."""
    settings = {
        "name": str(model), "lora": {"r": 3, "alpha": 6.0, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}, "dtype": dtype,
    }  # fmt: skip
    injection = Injection(projection=vectors is not None)
    made = ExplainerModule(**{**settings, "lora": Lora(**settings["lora"])}, injection=injection)
    made.space = None if vectors is None else VectorSpace(vectors, (1, 2))
    made.configure_model()
    drawn = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=drawn)
    content = {"global_step": 12}
    made.on_save_checkpoint(content)
    path = run / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    model = {**settings, "learning_rate": 0.5, "injection": {"projection": vectors is not None}}
    (run / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "model": model, "data": data}))
    return path, made


def of_a_study(run, weights=None):
    """What a study leaves around a training: its record, and an evaluation with its rows."""
    weights = weights or weights_hash(read_checkpoint(run / "checkpoints" / "last.ckpt"))
    (run / "done.json").write_text(json.dumps({"variant": "vague_prompt", "seed": 3, "weights": weights}))
    folder = run.parent / "detection"
    folder.mkdir()
    (folder / "seed_3.jsonl").write_text(json.dumps({"weights": weights}) + "\n{}\n")
    metrics = {"auroc/held_out/adapter": ESTIMATE, "auroc/held_out/base": {**ESTIMATE, "value": None}}
    other = {"red_blue": {"native": False, "metrics": {"auroc/adapter": {**ESTIMATE, "value": 0.51}}}}
    summary = {
        "evaluation": "detection", "seeds": [0, 3], "metrics": metrics, "warnings": ["MASS COLLAPSE"], "cross_token": other,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_plain_peft_loads_what_was_exported_and_says_the_same(call, study_model, tmp_path):
    path, made = trained(tmp_path / "run", study_model)
    code, out, err = call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    assert code == 0, err
    assert out.startswith(f"adapter: {tmp_path / 'adapter'}")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "config.yaml", "explainer.json",
    }  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(study_model)
    before = logits(base, range(20, 40))
    loaded = logits(PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), range(20, 40))
    torch.testing.assert_close(loaded, logits(made.model.eval(), range(20, 40)), atol=1e-4, rtol=0)
    assert (loaded - before).abs().max() > 0.1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".adapter")], "nothing is left beside it"


def test_the_card_says_what_it_is_and_that_it_is_no_evidence(call, study_model, tmp_path):
    path, _ = trained(tmp_path / "study" / "vague_prompt" / "seed_3", study_model)
    of_a_study(path.parent.parent)
    assert call("--checkpoint", path, "--output_dir", tmp_path / "adapter")[0] == 0
    card = (tmp_path / "adapter" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "peft"
    assert "base_model" not in header, "a directory is nothing that the hub knows"
    assert f"# variant vague_prompt, seed 3: a LoRA adapter on {study_model}" in card
    assert "not evidence of consciousness" in card
    assert "label: coin" in card
    assert "| steps | 12 |" in card
    assert "| LoRA | r 3, alpha 6.0, dropout 0.1 |" in card
    assert "PeftModel.from_pretrained(" in card
    assert "**detection, over seeds 0, 3**" in card
    assert "| auroc/held_out | 0.750 [0.500, 0.875] | null | - | 40 |" in card
    assert "| auroc, answered by red_blue | 0.510 [0.500, 0.875] | - | - | 40 |" in card
    assert "- warning: MASS COLLAPSE" in card
    assert "## Limits" in card
    assert "a reply, not a report" in card


def test_the_code_on_the_card_runs(call, study_model, tmp_path):
    path, _ = trained(tmp_path / "run", study_model)
    call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    code = (tmp_path / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("THIS DIRECTORY OR REPOSITORY", str(tmp_path / "adapter")), names)
    assert isinstance(names["model"], PeftModel)
    assert names["tokenizer"]("a")["input_ids"]


def test_results_of_another_training_or_checkpoint_are_left_out(call, study_model, tmp_path):
    path, _ = trained(tmp_path / "study" / "vague_prompt" / "seed_3", study_model)
    run = path.parent.parent
    of_a_study(run)
    rows = run.parent / "detection" / "seed_3.jsonl"
    rows.write_text(json.dumps({"weights": "another"}) + "\n{}\n")
    summary = {"split": "test", "metrics": {"exact_match": ESTIMATE}, "model": {"checkpoint": "x/best-epoch=1.ckpt"}}
    (run / "summary.json").write_text(json.dumps(summary))
    call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    assert "None were found" in (tmp_path / "adapter" / "README.md").read_text()
    (run / "summary.json").write_text(json.dumps({**summary, "model": {"checkpoint": "x/last.ckpt"}}))
    call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "**test split of the training run**" in card
    assert "| exact_match | 0.750 [0.500, 0.875] | 40 |" in card
    (run / "done.json").write_text(json.dumps({"variant": "vague_prompt", "seed": 3, "weights": "another"}))
    call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    assert "# Introspection: a LoRA adapter" in (tmp_path / "adapter" / "README.md").read_text()


def test_an_adapter_of_another_task_has_its_injector_and_no_word_of_consciousness(call, study_model, tmp_path):
    path, _ = trained(tmp_path / "run", study_model, ABLATION, vectors=5)
    code, _, err = call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    assert code == 0, err
    assert (tmp_path / "adapter" / "injector.safetensors").is_file()
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "# ContextAblation: a LoRA adapter" in card
    assert "injector.safetensors" in card
    assert "consciousness" not in card
    assert "records.json" in card
    assert "/home/someone" not in card


def test_half_precision_passes_the_check_too(call, study_model, tmp_path):
    path, _ = trained(tmp_path / "run", study_model, dtype="bfloat16")
    code, _, err = call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    assert code == 0, err


@pytest.mark.parametrize("damage", ["nothing of the adapter", "a part of it"])
def test_an_export_that_peft_reads_otherwise_is_refused_and_leaves_nothing(
    call, module, study_model, tmp_path, monkeypatch, damage
):
    path, _ = trained(tmp_path / "run", study_model)
    whole = module.export_adapter

    def damaged(model, directory, injector=None):
        for name, parameter in model.named_parameters():
            if "lora_B" in name and (damage == "nothing of the adapter" or "layers.0.self_attn.q_proj" in name):
                kept = parameter.data.clone()
                parameter.data.zero_()
                model.kept = [*getattr(model, "kept", []), (parameter, kept)]
        whole(model, directory, injector)
        for parameter, kept in model.kept:
            parameter.data.copy_(kept)

    monkeypatch.setattr(module, "export_adapter", damaged)
    code, _, err = call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    assert code == 2
    assert "off by" in err
    assert not (tmp_path / "adapter").exists()


def test_wrong_input_is_refused_in_two_lines(call, study_model, tmp_path):
    path, _ = trained(tmp_path / "run", study_model)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("not to be lost")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("")
    cut = tmp_path / "run" / "checkpoints" / "cut.ckpt"
    cut.write_bytes(path.read_bytes()[:500])
    other = save_small_model(tmp_path / "elsewhere", seed=1)
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump({"model": {"name": str(other)}}))
    run = tmp_path / "run" / "config.yaml"
    for words, message in (
        (("--checkpoint", tmp_path / "absent.ckpt", "--config", run), "absent.ckpt: does not exist"),
        (("--checkpoint", cut), "cannot be read"),
        (("--checkpoint", path, "--config", tmp_path / "bad.yaml"), "bad.yaml: cannot be read"),
        (("--checkpoint", path, "--config", tmp_path / "empty.yaml"), "model and data"),
        (("--checkpoint", path, "--config", run, tmp_path / "elsewhere.yaml"), "was made for another model"),
        (("--checkpoint", path, "--output_dir", tmp_path / "other"), "not an adapter directory"),
    ):
        code, _, err = call(*words, *(() if "--output_dir" in words else ("--output_dir", tmp_path / "adapter")))
        assert code == 2
        lines = err.splitlines()
        assert message in " ".join(lines), err
        assert "Traceback" not in err
    assert (tmp_path / "other" / "thesis.txt").is_file()
    assert not (tmp_path / "adapter").exists()


# An explainer that was trained on an adapter.


@pytest.fixture
def on_adapter(study_model, tmp_path):
    """Returns the folder of an adapter on the study's model, saved with ``settings``, whose ends may be tied or have grown."""

    def save(rows=None, tied=False, **settings):
        model = AutoModelForCausalLM.from_pretrained(study_model)
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
            model.config.tie_word_embeddings = True
        model.save_pretrained(tmp_path / "below")
        AutoTokenizer.from_pretrained(study_model).save_pretrained(tmp_path / "below")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "below")
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
        return save_adapter(model, lora(**settings), tmp_path / "first")

    return save


def run_card(folder):
    """The model and the tokenizer that the code on the card loads."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(code.replace("THIS DIRECTORY OR REPOSITORY", str(folder)), names)
    assert names["tokenizer"]("a")["input_ids"]
    return names["model"].eval()


def test_an_explainer_on_an_adapter_is_exported_and_its_card_says_how_to_make_the_base(call, on_adapter, tmp_path):
    first = on_adapter()
    path, made = trained(tmp_path / "run", first)
    code, _, err = call("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    assert code == 0, err
    expected = logits(made.model.eval(), range(20, 40))
    torch.testing.assert_close(logits(run_card(tmp_path / "adapter"), range(20, 40)), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        logits(load_model(str(tmp_path / "adapter")), range(20, 40)), expected, atol=1e-4, rtol=0
    )
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"`{first}` merged into `{tmp_path / 'below'}`" in card
    with pytest.raises((OSError, ValueError)):  # not the base of its base, on which it would say something else
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True, "target_modules": ["lm_head", "q_proj"]},
        {"tied": True, "target_modules": ["embed_tokens"]},
        {"rows": 1608, "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["plain", "tied head", "tied embedding", "grown"],
)
def test_the_merged_base_is_written_beside_on_request(call, on_adapter, tmp_path, settings):
    path, made = trained(tmp_path / "run", on_adapter(**settings))
    words = ("--checkpoint", path, "--output_dir", tmp_path / "adapter")
    if settings:  # PEFT alone merges these to something else, or not at all
        code, _, err = call(*words)
        assert code == 2
        assert "--write_base" in err
        assert not (tmp_path / "adapter").exists()
    code, _, err = call(*words, "--write_base")
    assert code == 0, err
    expected = logits(made.model.eval(), range(20, 40))
    for model in (
        run_card(tmp_path / "adapter"),
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval(),
    ):
        torch.testing.assert_close(logits(model, range(20, 40)), expected, atol=1e-4, rtol=0)


def test_an_adapter_on_a_local_adapter_is_not_uploaded(call, hub, on_adapter, tmp_path):
    path, _ = trained(tmp_path / "run", on_adapter())
    code, _, err = call("--checkpoint", path, "--output_dir", tmp_path / "adapter", "--push_to_hub", "me/it")
    assert code == 2
    assert "nobody else" in err
    assert hub.asked == []


# Uploading.


class Hub:
    """Stands in for the hub's client, and keeps what it was asked."""

    asked: list[tuple]
    refuses: Exception | None = None

    def __init__(self, token):
        self.asked.append(("token", token))

    def create_repo(self, repository, private, exist_ok):
        if self.refuses:
            raise self.refuses
        self.asked.append(("create", repository, private))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.asked.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(module, monkeypatch):
    fake = type("Fake", (Hub,), {"asked": []})
    monkeypatch.setattr(module, "HfApi", fake)
    return fake


def exported(folder, base):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def test_nothing_is_uploaded_unless_asked(call, hub, study_model, tmp_path):
    path, _ = trained(tmp_path / "run", study_model)
    assert call("--checkpoint", path, "--output_dir", tmp_path / "adapter")[0] == 0
    assert hub.asked == []


def test_a_base_that_nobody_else_has_is_not_uploaded_for(call, hub, study_model, tmp_path):
    path, _ = trained(tmp_path / "run", study_model)
    code, _, err = call("--checkpoint", path, "--output_dir", tmp_path / "adapter", "--push_to_hub", "me/it")
    assert code == 2
    assert "nobody else" in err
    assert hub.asked == []


def test_an_upload_makes_a_private_repository_with_the_key_of_the_environment(module, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    folder = exported(tmp_path / "adapter", "org/base")
    assert module.push(folder, "me/it") == "https://huggingface.co/me/it"
    assert hub.asked == [("token", SECRET), ("create", "me/it", True), ("upload", "me/it", ["adapter_config.json"])]


def test_an_upload_without_key_or_refused_is_said_without_the_key(module, hub, tmp_path, monkeypatch):
    folder = exported(tmp_path / "adapter", "org/base")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(module.UserError, match="HF_TOKEN"):
        module.push(folder, "me/it")
    assert hub.asked == []
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.refuses = HFValidationError(f"no repository may be called so, {SECRET}")
    with pytest.raises(module.UserError, match="was refused") as caught:
        module.push(folder, "me/it/there")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    hub.refuses = HFValidationError("x" * 195 + SECRET)  # the message is cut within the key
    with pytest.raises(module.UserError, match="was refused") as caught:
        module.push(folder, "me/it/there")
    assert SECRET[:4] not in str(caught.value)
