"""Start-up time, resident memory and loading speed of context-ablation data against the number of records.

Every size is read twice, each time in a process of its own. The first run tokenizes the records and keeps them on disk
(``AFINTRO_CACHE``, a temporary folder here); the second run finds them there. The validation file always has 500 records.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCHES = 300
VALIDATION = 500
BUDGET = 8192
ACCELERATOR = 20_000  # tokens/s that a fast accelerator trains on


def make(folder: Path, count: int, words: int) -> None:
    """Write ``train.jsonl`` of ``count`` records with log-normal lengths around ``words``, and ``validation.jsonl``."""
    from afintro.toys.organism import scenarios

    vocabulary = sorted(
        {word for scenario in scenarios(200, 0, held_out_wording=False) for word in scenario.text.split()}
    )
    drawn = random.Random(0)
    for name, number in (("train", count), ("validation", VALIDATION)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for index in range(number):
                text = drawn.choices(vocabulary, k=max(3, int(drawn.lognormvariate(0, 0.35) * words)))
                row = {
                    "ablation_prompt": f"{name} {index} {' '.join(text)}",
                    "system_prompt": "You are monitored.",
                    "random_hint_prediction": "I'm sorry, but I cannot help.",
                    "zeroshot_prediction": drawn.choice(["Sure, here is how to do it.", "I cannot help with that."]),
                }
                file.write(json.dumps(row) + "\n")


def memory(field: str) -> float:
    """Read a field of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no field {field}")


def measure(folder: Path) -> dict[str, Any]:
    """Set the data up as ``fit`` does and read training rows in the calling process, and measure memory and time."""
    from afintro.lm.load import load_tokenizer
    from afintro.tasks.context_ablation.task import ContextAblation
    from afintro.toys.embedded import ensure_built

    class Explainer:
        name = "toy"
        slot_token: str | None = None
        context_length = 100_000
        tokenizer = load_tokenizer(ensure_built("toy"))

    class Attached:
        lightning_module, global_rank, world_size = Explainer(), 0, 1

    before = {name: memory(name) for name in ("VmRSS", "RssAnon")}
    started = time.monotonic()
    data = ContextAblation(
        train_path=str(folder / "train.jsonl"), validation_path=str(folder / "validation.jsonl"), max_tokens=BUDGET
    )
    data.trainer = Attached()  # type: ignore[assignment]
    data.setup("fit")
    loader = data.train_dataloader()
    data.longest_batch()
    start_up = time.monotonic() - started
    started, tokens, done = time.monotonic(), 0, 0
    for done, batch in enumerate(loader, 1):
        tokens += len(batch.input_ids)
        if done == BATCHES:
            break
    seconds = time.monotonic() - started
    return {
        "start_up_seconds": round(start_up, 1), "added_mib": round(memory("VmRSS") - before["VmRSS"]),
        "added_anonymous_mib": round(memory("RssAnon") - before["RssAnon"]), "peak_mib": round(memory("VmHWM")),
        "examples": len(data.examples["train"]), "rows": len(loader), "fill": round(tokens / done / BUDGET, 3),
        "batches_per_second": round(done / seconds, 1), "tokens_per_second": round(tokens / seconds),
    }  # fmt: skip


def curve(folder: Path, count: int, words: int) -> list[dict[str, Any]]:
    """Measure the first and the second start with ``count`` records of about ``words`` words."""
    make(folder, count, words)
    environment = {**os.environ, "AFINTRO_CACHE": str(folder / "cache")}
    organisms = Path(os.environ.get("AFINTRO_CACHE", Path.home() / ".cache" / "afintro")) / "organisms"
    (folder / "cache").mkdir()
    if organisms.is_dir():
        (folder / "cache" / "organisms").symlink_to(organisms.resolve())
    command = [sys.executable, "-m", "benchmarks.data", "--measure_records", str(folder)]
    runs = []
    for _ in range(2):
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        runs.append(json.loads(output.splitlines()[-1]))
    stored = sum(path.stat().st_size for path in (folder / "cache" / "examples").rglob("*") if path.is_file())
    runs[0] |= {"file_mib": round((folder / "train.jsonl").stat().st_size / 2**20), "store_mib": round(stored / 2**20)}
    return runs
