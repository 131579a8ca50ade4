"""A reader follows one record from its line of JSON to its loss through few files."""

import sys
from pathlib import Path

import afintro
from afintro.explainer import ExplainerModule
from afintro.lm.lora import Lora
from afintro.tasks.context_ablation import ContextAblation
from tests.conftest import write_records

PACKAGE = Path(afintro.__file__).parent
# The files in which a record changes its form: row, record, draft, token ids, example, packed batch, loss, logits.
FORMS = {
    "data/records.py", "tasks/context_ablation/records.py", "tasks/context_ablation/task.py", "data/text.py",
    "data/batch.py", "data/loader.py", "explainer/forward.py", "lm/forward.py",
}  # fmt: skip


def test_a_record_passes_few_files_on_its_way_to_its_loss(tmp_path: Path, small_model: Path) -> None:
    write_records(tmp_path / "train.json", 8, seed=3)
    write_records(tmp_path / "validation.json", 4, seed=3, held_out_wording=True)
    module = ExplainerModule(name=str(small_model), lora=Lora(r=2, alpha=4))
    module.configure_model()
    _ = module.tokenizer  # loaded before: a record does not pass through the loading of files
    paths = {f"{split}_path": str(tmp_path / f"{split}.json") for split in ("train", "validation")}
    data = ContextAblation(**paths, batch_size=4)
    entered: dict[str, None] = {}

    def enter(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            entered.setdefault(str(path.relative_to(PACKAGE)))

    sys.setprofile(enter)
    try:
        items = data.read_examples("train", module)
        data.examples = {"train": items}
        loss = module.loss(next(iter(data.train_dataloader())))
    finally:
        sys.setprofile(None)
    print(*entered, sep="\n")
    assert loss.isfinite()
    assert set(entered) >= FORMS
    # Verified prompts, control strings, cut outputs, sources, formats, wordings of cues and forms of answers have a file each.
    assert len(entered) <= 26
    assert max(len((PACKAGE / name).read_text().splitlines()) for name in entered) <= 400
