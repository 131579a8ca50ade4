"""Resident memory and start-up time of the data against its size, for features and for records of context ablation.

``python -m benchmarks.data`` measures both; :mod:`benchmarks.records` describes the records. For each number of features, it
makes a feature file (4,096 wide, float32, 4 features a cluster) and reads 200 training batches in a process of its own. The
feature file is sparse, because only the process's memory is measured and not the disk.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from afintro.data.files import write_json
from benchmarks import records as record_data
from benchmarks.records import memory

SIZES = (10_000, 100_000, 1_000_000)
WIDTH = 4096
BATCHES = 200
RESULTS = Path(__file__).parent / "results"


def make(folder: Path, count: int) -> None:
    """Write a feature file of zeros and its descriptions as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = count * WIDTH * 4
    header = {
        "vectors": {"dtype": "F32", "shape": [count, WIDTH], "data_offsets": [0, vectors]},
        "feature_indices": {"dtype": "I64", "shape": [count], "data_offsets": [vectors, vectors + 8 * count]},
        "__metadata__": {"layer": "20", "width": str(WIDTH)},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "layer_20.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + vectors + 8 * count)
        file.seek(start + vectors)
        file.write(np.arange(count, dtype="<i8").tobytes())
    clusters = [str(index // 4) for index in range(count)]
    labels = [f"fires on texts about subject number {cluster} of many" for cluster in clusters]
    table = pa.table({"feature": list(range(count)), "chosen_label": labels, "cluster_id": clusters})
    pq.write_table(table, folder / "descriptions.parquet")


def measure(folder: Path) -> dict[str, Any]:
    """Read training batches of the folder's features in the calling process, and measure memory and time."""
    from afintro.lm.load import load_tokenizer
    from afintro.tasks.feature_descriptions.task import FeatureDescriptions
    from afintro.toys.embedded import ensure_built

    class Explainer:
        name = "toy"
        slot_token: str | None = "<|slot|>"
        context_length = revision = None
        tokenizer = load_tokenizer(ensure_built("toy"))

    before, started = memory("VmRSS"), time.monotonic()
    anonymous = memory("RssAnon")
    data = FeatureDescriptions(
        train_path=str(folder / "descriptions.parquet"), features=[str(folder / "layer_20.safetensors")]
    )
    data.examples["train"] = data.read_examples("train", Explainer())
    data.examples["validation"] = data.read_examples("validation", Explainer())
    start_up = time.monotonic() - started
    loader = data.train_dataloader()
    started, tokens = time.monotonic(), 0
    for done, batch in enumerate(loader, 1):
        tokens += len(batch.input_ids)
        if done == BATCHES:
            break
    seconds = time.monotonic() - started
    return {
        "before_mib": round(before), "before_anonymous_mib": round(anonymous), "after_mib": round(memory("VmRSS")),
        "after_anonymous_mib": round(memory("RssAnon")), "peak_mib": round(memory("VmHWM")),
        "start_up_seconds": round(start_up, 1), "batches_per_second": round(BATCHES / seconds, 1),
        "tokens_per_second": round(tokens / seconds), "validation": len(data.examples["validation"]),
    }  # fmt: skip


def features(count: int) -> dict[str, Any]:
    """Measure one number of features, print the figures, and return the row of the result file."""
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), count)
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{name}/cache"}
        command = [sys.executable, "-m", "benchmarks.data", "--measure", name]
        runs = []
        for _ in range(2):  # the second run finds the labels in the cache of the datasets library
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            runs.append(json.loads(output.splitlines()[-1]))
    last = runs[-1]
    print(
        f"{count:>10,} features ({count * WIDTH * 4 / 2**30:.1f} GiB): added {last['after_mib'] - last['before_mib']} MiB, "
        f"anonymous {last['after_anonymous_mib'] - last['before_anonymous_mib']} MiB, start-up {last['start_up_seconds']} s, "
        f"{last['batches_per_second']} batches/s"
    )
    return _row("feature_memory", f"{count} features x {WIDTH}", f"batch 32, {BATCHES} batches", runs)


def records(count: int, words: int) -> dict[str, Any]:
    """Measure one number of records of about ``words`` words, and return the row of the result file."""
    with tempfile.TemporaryDirectory() as name:
        runs = record_data.curve(Path(name), count, words)
    for which, run in zip(("first", "second"), runs, strict=True):
        print(f"{count:>10,} records, {which} start: {run}")
    setting = f"max_tokens {record_data.BUDGET}, {record_data.BATCHES} batches, no worker process"
    row = _row("record_memory", f"{count} records of about {words} words", setting, runs)
    return {**row, "times_what_an_accelerator_takes": round(row["tokens_per_second"] / record_data.ACCELERATOR, 1)}


def _row(benchmark: str, shape: str, setting: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "benchmark": benchmark, "shape": shape, "system": "afintro", "setting": setting,
        "tokens_per_second": runs[-1]["tokens_per_second"], "fraction_of_ceiling": None,
        "peak_gb": round(runs[-1]["peak_mib"] / 1024, 3), "runs": runs,
    }  # fmt: skip


def main() -> None:
    """Measure every size in a process of its own, print the figures, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="numbers of features")
    parser.add_argument("--records", type=int, nargs="*", default=list(SIZES), help="numbers of records")
    parser.add_argument("--words", type=int, default=100, help="approximate number of words of a record")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure_records", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    if args.measure_records:
        print(json.dumps(record_data.measure(args.measure_records)))
        return
    hardware = f"{platform.machine()}-{os.cpu_count()}cpu"
    path = RESULTS / f"data-{hardware}.json"
    measured = [features(count) for count in args.sizes] + [records(count, args.words) for count in args.records]
    # Rows that were not measured this time stay in the file.
    shapes = {row["shape"] for row in measured}
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    versions = {name: version(name) for name in ("torch", "datasets", "pyarrow", "numpy", "tokenizers")}
    rows = [row for row in kept if row["shape"] not in shapes] + measured
    write_json(path, {"hardware": hardware, "versions": versions, "ceilings": {}, "rows": rows})


if __name__ == "__main__":
    main()
