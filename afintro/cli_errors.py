"""jsonargparse's errors in two lines: what is wrong and where, and the nearest name that is right."""

import difflib
import re
import traceback
from pathlib import Path

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from afintro.cli_settings import setting_names
from afintro.errors import one_line
from afintro.ranges import RANGES
from afintro.tasks.base import TaskData

LIGHTNING = Path(lightning.__file__).parent
_UNKNOWN = re.compile(
    r"unrecognized arguments: -*(?P<flag>[\w.]+)|does not accept option '(?P<option>[\w.]+)'"
    r"|Option '(?P<data>[\w.]+)' is not accepted"
)


def explain(message: str, task: type[TaskData] | None = None) -> str:
    """Return two lines for the command line: what is wrong and where, and the remedy.

    Args:
        message: What jsonargparse says.
        task: The data module class that is configured, whose settings may be meant; None for the settings of all tasks.
    """
    unknown = _UNKNOWN.search(message)
    if unknown is not None:
        name = unknown["flag"] or unknown["option"] or f"data.{unknown['data']}"
        name = name.replace("data.init_args.", "data.")
        near = difflib.get_close_matches(name, setting_names(task), n=1, cutoff=0.5)
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


def trainer_refusal(error: Exception) -> str | None:
    """Return two lines for what Lightning itself refuses about its trainer, callbacks and loggers; None for any other error.

    Args:
        error: The error as it was caught, with its traceback.
    """
    raised_in = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)][-1:]
    called_back = any(LIGHTNING / "pytorch" / "callbacks" in file.parents for file in raised_in)
    own = (ValueError, ModuleNotFoundError, *([RuntimeError] if called_back else []))
    inside = isinstance(error, own) and any(LIGHTNING in file.parents for file in raised_in)
    if not inside and not isinstance(error, MisconfigurationException):
        return None
    return f"trainer: {one_line(error, 400)}\n  remedy: change that setting of trainer, which --help lists"
