"""Write the card of a trained adapter: what it is, what it was measured to do, and what that does not show."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from afintro import __version__
from afintro.evaluation.intervals import Estimate
from afintro.explainer.checkpoint import BASE_DTYPE, IDENTITY
from afintro.study.matrix import weights_hash
from afintro.study.report.tables import folded, number, table

LONGEST_OPEN_TABLE = 12  # tables with more rows are folded

NO_EVIDENCE = """\
> **This is not evidence of consciousness**, feeling or inner life. The adapter was trained, as one of a study's variants, on
> questions about its own activations or on controls to them. What it answers about itself is behavior that training shifted.
"""

LIMITS = """\
- Intervals are 95 % bootstrap intervals; over one training run they do not say how other runs would turn out.
- Steering was read at the layers, strengths and kinds of vectors above; other layers, strengths, vectors and texts were not tried.
- An adapter that detects steering only with the answer words it was trained with may have learned a reply, not a report.
- Low probability mass on the answers makes their ratio meaningless: see the warnings.
"""


@dataclass(frozen=True)
class Trained:
    """A trained adapter and its origin.

    Args:
        settings: Content of the configuration that the adapter was trained with.
        checkpoint: Content of the adapter's checkpoint.
        path: Path of the checkpoint. The run's folder is two levels above.
        origin: Name and revision of what the adapter was trained on: adapters, the last one first, then the whole model.
        tokenizer: Name or path that the tokenizer is loaded from.
        difference: Largest difference between the logits of the adapter as loaded by PEFT and of the trained module.
        written: Path of the merged base beside the exported adapter; None if it was not written.
    """

    settings: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    path: Path
    origin: tuple[tuple[str, str | None], ...]
    tokenizer: str
    difference: float
    written: str | None = None

    @property
    def base(self) -> str:
        """Return the name or path of the whole model below all adapters."""
        return self.origin[-1][0]

    @property
    def run(self) -> Path:
        """Return the folder of the training."""
        return self.path.parent.parent

    @property
    def task(self) -> str:
        """Return the name of the data module's class."""
        return str(self.settings["data"]["class_path"].rpartition(".")[2])

    @property
    def record(self) -> dict[str, Any] | None:
        """Return the study's record of the training with variant and seed, or None for a run outside of a study."""
        path = self.run / "done.json"
        content: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return content if content and content["weights"] == weights_hash(dict(self.checkpoint)) else None


def model_card(trained: Trained) -> str:
    """Return Markdown with the header that the Hugging Face Hub reads."""
    record, base = trained.record, trained.checkpoint[IDENTITY]["base"]
    head: dict[str, Any] = {"library_name": "peft", "tags": ["lora", "afintro"], "pipeline_tag": "text-generation"}
    if not Path(trained.base).is_dir():
        head["base_model"] = trained.base
    name = f"variant {record['variant']}, seed {record['seed']}" if record else trained.task
    study = trained.task == "Introspection"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---\n",
        f"# {name}: a LoRA adapter on {base}\n",
        NO_EVIDENCE if study else "",
        f"## How to load it\n\n{_loading(trained)}",
        f"## Base and training\n\n{_training(trained)}",
        f"## Data\n\n{_data(trained)}",
        f"## Metrics\n\n{_metrics(trained)}",
        f"## Limits\n\n{LIMITS if study else LIMITS.splitlines(keepends=True)[0]}",
    ]
    return "\n".join(part for part in parts if part)


def _loading(trained: Trained) -> str:
    identity = trained.checkpoint[IDENTITY]
    note, importing, base = _base(trained)
    injector = "`injector.safetensors` turns vectors into tokens of the prompt; afintro reads it, PEFT does not.\n\n"
    return f"""\
{note}```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
{importing}
{base}
model = PeftModel.from_pretrained(base, "THIS DIRECTORY OR REPOSITORY")
```

{injector if identity.get("vectors") else ""}\
Its logits, loaded this way, differ from those of the trained module by at most {trained.difference:.1e} (checked for this card).
"""


def _base(trained: Trained) -> tuple[str, str, str]:
    """Return a note on the base, and the lines of Python that import what they need, and load base and tokenizer."""
    *adapters, (whole, revision) = trained.origin
    if trained.written is not None:
        note = f"The base that it was trained on lies in `{Path(trained.written).name}/`.\n\n"
        return note, "", _lines(repr(trained.written), None, [], repr(trained.written))
    embedded = trained.checkpoint[IDENTITY]["base"]
    if not adapters and whole != embedded:  # an embedded model, which is in the cache of the machine that trained it
        note = f"The base is not on the hub: afintro {__version__} makes it when it is first used.\n\n"
        importing = "from afintro.toys.embedded import ensure_built\n"
        return note, importing, _lines(f"ensure_built({embedded!r})", revision, [], f"ensure_built({embedded!r})")
    note = ""
    if adapters:
        names = " and ".join(f"`{name}`" for name, _ in reversed(adapters))
        note = f"**It was trained on {names} merged into `{whole}`**; on `{whole}` alone it says something else.\n\n"
    return note, "", _lines(repr(whole), revision, adapters[::-1], repr(trained.tokenizer))


def _lines(whole: str, revision: str | None, adapters: list[tuple[str, str | None]], tokenizer: str) -> str:
    def loaded(name: str, at: str | None) -> str:
        return name + (f", revision={at!r}" if at else "")

    own = adapters[-1][1] if adapters and tokenizer == repr(adapters[-1][0]) else revision
    merging = [
        f"base = PeftModel.from_pretrained(base, {loaded(repr(name), at)}).merge_and_unload()" for name, at in adapters
    ]
    return "\n".join(
        [
            f"base = AutoModelForCausalLM.from_pretrained({loaded(whole, revision)})",
            *merging,
            f"tokenizer = AutoTokenizer.from_pretrained({loaded(tokenizer, own)})",
        ]
    )


def _training(trained: Trained) -> str:
    identity, model = trained.checkpoint[IDENTITY], trained.settings["model"]
    lora = identity["lora"]
    targets = lora["target_modules"]
    rows = [
        ["base", f"`{identity['base']}`"],
        *([["made of", " on ".join(f"`{name}`" for name, _ in trained.origin)]] if len(trained.origin) > 1 else []),
        ["revision", str(identity.get("revision") or "-")],
        ["fingerprint of the weights", str(identity.get("fingerprint") or "-")],
        ["hash of the chat template", str(identity.get("template_hash"))],
        *_prompts(identity),
        ["LoRA", f"r {lora['r']}, alpha {lora['alpha']}, dropout {lora['dropout']}"],
        ["on", targets if isinstance(targets, str) else ", ".join(targets)],
        ["steps", str(int(trained.checkpoint["global_step"]))],
        ["learning rate", f"{model.get('learning_rate')}, {model.get('schedule')}, {model.get('warmup_steps')} steps of warm-up"],
        ["base weights", str(trained.checkpoint.get(BASE_DTYPE) or model.get("dtype"))],
        ["seed", str(trained.settings.get("seed_everything"))],
    ]  # fmt: skip
    return table(["setting", "value"], rows)


def _prompts(identity: Mapping[str, Any]) -> list[list[str]]:
    """Return what prompts hold beside their turns, without which the adapter is asked otherwise than it was trained."""
    chosen, date = identity.get("chat_template_kwargs"), identity.get("prompt_date")
    return [
        *([["settings of the chat template", f"`{json.dumps(chosen)}`"]] if chosen else []),
        *([["date in the prompts", str(date)]] if date else []),
    ]


def _data(trained: Trained) -> str:
    """Return the data module and its settings as they were configured, with paths reduced to their last part."""
    configured = trained.settings["data"].get("init_args", {})
    kept = {name: _without_folders(name, value) for name, value in configured.items()}
    summary = _read(trained.run / "summary.json").get("data", {})
    source = f" File hash: {summary['sha256']}." if summary.get("sha256") else ""
    listed = yaml.safe_dump(kept, sort_keys=True)
    return f"`{trained.settings['data']['class_path']}`.{source}\n\n```yaml\n{listed}```\n"


def _without_folders(name: str, value: Any) -> Any:
    """Return the names of files without their folders, and any other value as it is."""
    if name.endswith("_path") and value:
        return Path(value).name
    return [Path(path).name for path in value] if name in ("heldout", "features") and isinstance(value, list) else value


def _metrics(trained: Trained) -> str:
    parts = []
    summary = _read(trained.run / "summary.json")
    if Path(str(summary.get("model", {}).get("checkpoint"))).name == trained.path.name:
        rows = [[name, *_values(summary["metrics"], name)] for name in summary["metrics"]]
        parts.append(_part(f"{summary['split']} split of the training run", ["metric", "adapter", "n"], rows))
        parts.append(_warned(summary))
    for path in sorted(trained.run.parent.glob("*/summary.json")) if trained.record else []:
        parts.append(_evaluation(trained, path))
    return "\n".join(part for part in parts if part) or "None were found beside the checkpoint.\n"


def _evaluation(trained: Trained, path: Path) -> str:
    """Return the metrics of an evaluation of the study, or an empty string if it belongs to another training."""
    content, record = _read(path), trained.record
    assert record is not None
    if "evaluation" not in content or record["seed"] not in content.get("seeds", []):
        return ""
    with (path.parent / f"seed_{record['seed']}.jsonl").open(encoding="utf-8") as file:
        if json.loads(file.readline()).get("weights") != record["weights"]:
            return ""
    metrics = content["metrics"]
    names = [name.removesuffix("/adapter") for name in metrics if name.endswith("/adapter")]
    rows = [_row(name, metrics, name) for name in names]
    for pair, cell in content.get("cross_token", {}).items():
        words = f"auroc, answered by {pair}{' (as trained)' if cell['native'] else ''}"
        rows.append(_row(words, cell["metrics"], "auroc"))
    if not rows:  # transcripts have no metrics
        return ""
    title = f"{content['evaluation']}, over seeds {', '.join(map(str, content['seeds']))}"
    return _part(title, ["metric", "adapter", "base", "difference", "n"], rows) + "\n" + _warned(content)


def _row(title: str, metrics: Mapping[str, Any], name: str) -> list[str]:
    adapter, base, shift = (_values(metrics, key) for key in (f"{name}/adapter", f"{name}/base", f"shift/{name}"))
    return [title, adapter[0], base[0], shift[0], adapter[1]]


def _values(metrics: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Return a value with its interval, and the number of items."""
    if name not in metrics:
        return "-", "-"
    estimate = Estimate(**{field: metrics[name][field] for field in ("value", "ci_low", "ci_high", "n")})
    return number(estimate, signed=False), str(estimate.n)


def _part(title: str, header: list[str], rows: list[list[str]]) -> str:
    text = table(header, rows)
    return folded(title, text) if len(rows) > LONGEST_OPEN_TABLE else f"**{title}**\n\n{text}"


def _warned(summary: Mapping[str, Any]) -> str:
    return "".join(f"- warning: {warning}\n" for warning in summary.get("warnings", []))


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
