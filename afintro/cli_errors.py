"""jsonargparse's errors in two lines: what is wrong and where, and the nearest name that is right."""

import dataclasses
import difflib
import inspect
import re

from lightning import Trainer

from afintro.explainer.module import ExplainerModule
from afintro.lm.injection import Injection
from afintro.lm.load import Lora
from afintro.ranges import RANGES
from afintro.tasks.base import TaskData, TaskSettings

_UNKNOWN = re.compile(
    r"unrecognized arguments: -*(?P<flag>[\w.]+)|does not accept option '(?P<option>[\w.]+)'"
    r"|Option '(?P<data>[\w.]+)' is not accepted"
)


def setting_names() -> list[str]:
    """Dotted names of all settings of the command line."""

    def arguments(prefix: str, owner: type) -> list[str]:
        return [f"{prefix}.{name}" for name in inspect.signature(owner).parameters]

    return [
        "config",
        "ckpt_path",
        "other_base",
        "text_only",
        "seed_everything",
        "data.class_path",
        *arguments("model", ExplainerModule),
        *(f"model.lora.{field.name}" for field in dataclasses.fields(Lora)),
        *(f"model.injection.{field.name}" for field in dataclasses.fields(Injection)),
        *(f"data.{field.name}" for field in dataclasses.fields(TaskSettings)),
        *(name for task in TaskData.__subclasses__() for name in arguments("data", task)),  # of the task configured
        *arguments("trainer", Trainer),
    ]


def explain(message: str) -> str:
    """Two lines for the command line: what and where, and the remedy."""
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        name = unknown["flag"] or unknown["option"] or f"data.{unknown['data']}"
        name = name.replace("data.init_args.", "data.")
        near = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown setting {name!r}\n  remedy: {hint}--help lists all settings"
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    expected = [
        kind for kind in re.findall(r"Expected an? (.+?)\.?(?: Got.*)?$", message, re.M) if "NoneType" not in kind
    ]
    given = re.findall(r"(?:Got|Given) value: (.+)$", message, re.M)
    if keys and expected and given:
        kind = expected[0].replace("<class '", "").replace("'>", "").replace("typing.", "")
        return f"{'.'.join(keys)}: {given[0]!r} is not accepted\n  remedy: give {kind}"
    outside = re.search(r"Not of type (\w+):(?: (\S+))? does not", message)
    allowed = next((words for kind, words in RANGES.items() if outside and kind.__name__ == outside[1]), None)
    if keys and outside and allowed:
        return f"{'.'.join(keys)}: must be {allowed}, but is {outside[2] or given[0]}\n  remedy: give {allowed}"
    flat = " ".join(line.strip() for line in message.splitlines() if "Expected a <class 'NoneType'>" not in line)
    flat = re.sub(r" Given value type: .*| Does not validate.*?Errors:", "", flat)
    return f"{flat[:400]}\n  remedy: compare with configs/ and --help"
