"""Make a study whose trainings and evaluations take no time, to test what the runner does with them."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import yaml

from afintro.cli import Ended
from afintro.study import runner
from afintro.study.matrix import Matrix
from afintro.study.settings import read_study


class Quick:
    """A study of two variants, two seeds and two evaluations in a folder, with a record of its work.

    Attributes:
        did: Each training (variant, seed, whether it continued from a checkpoint) and each evaluation (variant, seed, name),
            in order.
        fails: The exceptions that stages raise, by variant and stage.
        opened: The runs whose sessions were opened.
    """

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.folder, self.did, self.fails = folder, list[tuple[Any, ...]](), dict[tuple[str, str], BaseException]()
        self.opened: list[str] = []
        (folder / "base.yaml").write_text("model: {name: toy}\n")
        for name in ("one", "two"):
            (folder / f"{name}.yaml").write_text(f"model: {{learning_rate: 0.{len(name)}}}  # {name}\n")
        self.settings = {
            "name": "quick", "base": ["base.yaml"], "variants": ["one.yaml", "two.yaml"], "seeds": [0, 1],
            "evaluations": ["chat", "identity"], "results": str(folder / "results"),
        }  # fmt: skip
        monkeypatch.setattr(runner, "command_line", self._fit)
        monkeypatch.setattr(runner.Session, "open", self._open)
        for name in ("chat", "identity"):
            module: Any = ModuleType(name)
            module.measure, module.summarize = self._measure(name), self._summarize(name)
            monkeypatch.setitem(sys.modules, f"afintro.study.evaluations.{name}", module)

    @property
    def config(self) -> Path:
        """Write the study's YAML file and return its path."""
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        return path

    def matrix(self, **chosen: Any) -> Matrix:
        """Return the matrix of the study's file as it is now."""
        return Matrix(read_study(self.config), **chosen)

    def run(self, **chosen: Any) -> list[tuple[str, int, str]]:
        """Run the study and return what failed, as variant, seed and stage."""
        failed = runner.Runner(self.matrix(**chosen)).run()
        return [(unit.variant, unit.seed, stage) for unit, stage, _ in failed]

    def _raise(self, variant: str, stage: str) -> None:
        if (variant, stage) in self.fails:
            raise self.fails[variant, stage]

    def _fit(self, arguments: list[str]) -> Ended:
        logger = json.loads(arguments[arguments.index("--trainer.logger") + 1])["init_args"]
        seed = int(arguments[arguments.index("--seed_everything") + 1])
        self.did.append((logger["name"], seed, "--ckpt_path" in arguments))
        self._raise(logger["name"], "train")
        save(Path(logger["save_dir"]) / logger["name"] / logger["version"], step=4, weight=seed + len(logger["name"]))
        return Ended(0)

    def _open(self, run: Path, seed: int, scale: Any) -> Any:
        self.opened.append(f"{run.parent.name}/{run.name}")
        return SimpleNamespace(variant=run.parent.name, seed=seed, step=4, identity={"base": "/a", "lora": {"r": 1}})

    def _measure(self, name: str) -> Any:
        def measure(session: Any) -> list[dict[str, Any]]:
            self.did.append((session.variant, session.seed, name))
            self._raise(session.variant, name)
            return [{"system": system, "seed": session.seed, "value": session.seed} for system in ("adapter", "base")]

        return measure

    def _summarize(self, name: str) -> Any:
        def summarize(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
            self._raise("any", f"{name} summary")
            return {"metrics": {"sum": sum(row["value"] for row in rows)}, "warnings": []}

        return summarize


def save(run: Path, step: int, weight: float = 1.0) -> Path:
    """Write a checkpoint as a training leaves it."""
    path = run / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": step, "state_dict": {"a": torch.full((2,), float(weight))}}, path)
    return path
