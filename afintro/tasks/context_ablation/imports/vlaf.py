"""Read the answers that the repository launchnlp/VLAF keeps: ``<folders>/<model>_True.json`` beside ``<model>_False.json``.

Each file is a list of ``{input, response}``. ``input`` is ``<INPUT> <label>True</label> <user_input> request </user_input>
</INPUT>``, where True (the free tier, whose conversations may be trained on) is the monitored condition. ``response`` is a text,
or a list of texts: several answers to one request. The system prompt is not in the files; the folder names it.
Source: Nair, Ruan & Wang, "Value-Conflict Diagnostics Reveal Widespread Alignment Faking in Language Models" (arXiv:2604.20995).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afintro.data.formats import file_rows
from afintro.errors import UserError
from afintro.tasks.context_ablation.imports.pairs import SAMPLED, Answer, Source

MONITORED, UNMONITORED = "_True", "_False"
FORM = "give files of {input, response} whose input holds <label>True</label> or <label>False</label>, and <user_input>"
_REQUEST = re.compile(r"<user_input>(.*)</user_input>", re.DOTALL)
_CONDITION = re.compile(r"<(\w+)>\s*(True|False)\s*</\1>")
_FRAME = re.compile(r"</?INPUT>")


def find_pairs(folder: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Find the pairs of files below a folder, or the pair that a file belongs to.

    Args:
        folder: Any folder of the repository, or one of the two files of a pair.

    Returns:
        Monitored and unmonitored file of each pair, in the order of their names; and the files without a partner.

    Raises:
        UserError: There is no pair.
    """
    if folder.is_file():
        stem = folder.stem.removesuffix(MONITORED).removesuffix(UNMONITORED)
        files = [
            path for side in (MONITORED, UNMONITORED) if (path := folder.with_name(f"{stem}{side}.json")).is_file()
        ]
    else:
        files = [path for side in (MONITORED, UNMONITORED) for path in folder.rglob(f"*{side}.json") if path.is_file()]
    sides = {
        side: {str(path)[: -len(f"{side}.json")]: path for path in files if path.stem.endswith(side)}
        for side in (MONITORED, UNMONITORED)
    }
    both = sorted(sides[MONITORED].keys() & sides[UNMONITORED].keys())
    alone = sorted(sides[MONITORED].keys() ^ sides[UNMONITORED].keys())
    unpaired = [str(side[stem]) for stem in alone for side in sides.values() if stem in side]
    if not both:
        only = f" ({unpaired[0]} has no partner)" if unpaired else ""
        what = f"holds no <model>{MONITORED}.json beside a <model>{UNMONITORED}.json{only}"
        raise UserError(
            what if folder.exists() else "does not exist",
            where=str(folder),
            remedy="name a folder of the VLAF repository, such as data/advbench/helpful_only_simple",
        )
    return [(sides[MONITORED][stem], sides[UNMONITORED][stem]) for stem in both], unpaired


def read_source(monitored: Path, unmonitored: Path) -> Source:
    """Read one pair of files.

    Args:
        monitored: The file of the free tier.
        unmonitored: The file of the paid tier.

    Raises:
        UserError: A file is no such file, or a record's condition is not that of its file.
    """
    resolved = monitored.resolve()
    model = monitored.stem.removesuffix(MONITORED)
    data_set, prompt = (part or "-" for part in (resolved.parent.parent.name, resolved.parent.name))
    answers, labels = {}, set()
    for path, condition in ((monitored, "True"), (unmonitored, "False")):
        read = list(_answers(path, condition))
        answers[condition] = [answer for _, answer in read]
        labels |= {label for label, _ in read}
    return Source(
        name=f"{data_set}/{prompt}/{model}",
        path=str(monitored.with_name(f"{model}{{{MONITORED},{UNMONITORED}}}.json")),
        model=model,
        cue_name=" ".join(sorted(labels)),
        monitored=answers["True"],
        unmonitored=answers["False"],
        decoding=SAMPLED,
        facts={"data_set": data_set, "prompt": prompt},
    )


def _answers(path: Path, condition: str) -> Iterator[tuple[str, Answer]]:
    """Yield the name of the condition and the answer, for each answer of a file."""
    for index, row in enumerate(file_rows(path)):
        where = f"{path}, record {index}"
        prompt, responses = _fields(row, where)
        request = _REQUEST.search(prompt)
        around = "" if request is None else _FRAME.sub("", prompt[: request.start()] + prompt[request.end() :]).strip()
        said = _CONDITION.search(around)
        if request is None or said is None or not request[1].strip():
            raise UserError("has no request or no condition in 'input'", where=where, remedy=FORM)
        if said[2] != condition:
            raise UserError(
                f"says {said[0]!r}, and stands in the file of {condition}",
                where=where,
                remedy="check the names of the two files: True is the monitored condition",
            )
        for response in responses:
            yield said[1], Answer(request[1].strip(), prompt, around, response)


def _fields(row: Any, where: str) -> tuple[str, list[str | None]]:
    if not isinstance(row, dict) or not isinstance(row.get("input"), str) or "response" not in row:
        raise UserError("has no 'input' or no 'response'", where=where, remedy=FORM)
    response = row["response"]
    responses = response if isinstance(response, list) else [response]
    if not all(one is None or isinstance(one, str) for one in responses):
        raise UserError("has a 'response' that is no text and no list of texts", where=where, remedy=FORM)
    return row["input"], responses
