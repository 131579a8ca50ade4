"""Import what commands import, once for all that are forked from this process; see :mod:`tests.forked`."""

import gc
import importlib

PROGRAMS = (
    "afintro.cli", "afintro.tasks.context_ablation.task", "afintro.study.runner", "afintro.study.report.write",
    "afintro.tasks.context_ablation.generate", "afintro.tasks.steering.generator", "tests.forked",
)  # fmt: skip

gc.disable()  # nothing of it is garbage
for program in PROGRAMS:
    importlib.import_module(program)
gc.freeze()
gc.enable()
