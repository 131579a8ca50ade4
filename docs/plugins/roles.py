"""Show the cross-references of docstrings (``:class:`X```) as code, with a link where the pages have the object."""

import re
from typing import Any

from griffe import Docstring, Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?\.?([^`]+)`")


def link(reference: re.Match[str]) -> str:
    """Return the HTML of one reference; a name that the pages do not have stays code without a link."""
    name = reference[1]
    return f'<autoref optional identifier="{name}"><code>{name.removeprefix("afintro.")}</code></autoref>'


class Roles(Extension):
    """Rewrite every docstring when it is read."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = ROLE.sub(link, obj.docstring.value)
