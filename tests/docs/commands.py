"""The commands that README, CONTRIBUTING and the pages of docs/ show, one by one."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`((?:python -m|python scripts/|afintro |make )[^`\n]+)`")
HEREDOC = re.compile(r"<<'(\w+)'$")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Args:
        page: Path of the page, relative to the root.
        text: The command on one line, without comments and without the text that is fed to it.
        script: What is fed to it with ``<<'END'``; None without it.
    """

    page: str
    text: str
    script: str | None = None

    @property
    def words(self) -> list[str]:
        """The program and its arguments, without a redirection."""
        return shlex.split(HEREDOC.sub("", self.text))

    @property
    def shell(self) -> str:
        """What a shell runs."""
        end = HEREDOC.search(self.text)
        return self.text if end is None else f"{self.text}\n{self.script}{end[1]}\n"


def block_commands(page: Path) -> Iterator[Command]:
    """Yield the commands of the shell blocks of a page, in their order."""
    name = str(page.relative_to(ROOT))
    for _, block in BLOCK.findall(page.read_text()):
        lines = iter(block.replace("\\\n", " ").splitlines(keepends=True))
        for line in lines:
            text = re.sub(r"(^|\s)#.*", "", line).strip()
            if not text:
                continue
            script = None
            if end := HEREDOC.search(text):
                script = ""
                for fed in lines:
                    if fed.strip() == end[1]:
                        break
                    script += fed
            yield Command(name, " ".join(text.split()), script)


def inline_commands(page: Path) -> Iterator[Command]:
    """Yield the commands that stand in the running text of a page."""
    for text in INLINE.findall(BLOCK.sub("", page.read_text())):
        yield Command(str(page.relative_to(ROOT)), text)
