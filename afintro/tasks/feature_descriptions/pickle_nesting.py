"""Refuse pickles whose containers would exhaust the unpickler itself, by their opcodes alone, before anything is made of them."""

import pickletools
from typing import IO, Any

DEEPEST = 300  # containers in each other; Python hashes tuples by recursion without a limit, and crashes
SHARING = 64  # how many values a byte of a file may stand for: containers that occur again and again would take forever
NUMBERED = ("PUT", "BINPUT", "LONG_BINPUT")
STORES = (*NUMBERED, "MEMOIZE")
FETCHES = ("GET", "BINGET", "LONG_BINGET")
CHANGES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # change what lies below their arguments


class _Size:
    """How deep a value nests, and how many values it stands for."""

    __slots__ = ("depth", "values")

    def __init__(self) -> None:
        self.depth, self.values = 0, 1

    def hold(self, parts: "list[_Size]") -> "_Size":
        """Put parts into the value."""
        self.depth = max([self.depth, *(part.depth + 1 for part in parts)])
        self.values += sum(part.values for part in parts)
        return self


def excess(file: IO[bytes], size: int) -> str | None:
    """Return what a pickle holds that its unpickler could not bear; None for a pickle that may be read.

    Lists and dicts that hold each other are left to the reader of the values: they are not hashed, and their depth is theirs alone.

    Args:
        file: The pickle, open at its beginning.
        size: Its size in bytes.

    Raises:
        Exception: The file is no pickle.
    """
    most = SHARING * max(size, 1024)
    stack: list[_Size | None] = []  # None is a mark
    memo: dict[int, _Size] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in NUMBERED and int(argument or 0) > size:
            return f"numbers a value {argument}, in a file of {size} bytes"  # of which it would keep empty places
        if opcode.name in STORES:
            memo[len(memo) if opcode.name == "MEMOIZE" else int(argument or 0)] = _top(stack)
        elif opcode.name in FETCHES:
            stack.append(memo[int(argument or 0)])
        elif opcode.name == "DUP":
            stack.append(_top(stack))
        elif opcode.name == "MARK":
            stack.append(None)
        elif opcode.name == "POP":
            stack.pop()
        else:
            parts = _taken(stack, opcode.stack_before)
            if opcode.name in CHANGES:
                stack.append(parts[0].hold(parts[1:]))
            else:
                stack += [_Size().hold(parts) for _ in opcode.stack_after]
        if stack and stack[-1] is not None and (stack[-1].depth > DEEPEST or stack[-1].values > most):
            return "holds containers within themselves, or the same container too often"
    return None


def _top(stack: list[_Size | None]) -> _Size:
    if not stack or stack[-1] is None:
        raise ValueError("nothing lies where a value belongs")
    return stack[-1]


def _taken(stack: list[_Size | None], before: Any) -> list[_Size]:
    """Take off the values that an opcode takes, also those above a mark."""
    parts: list[_Size] = []
    below = list(before)
    if pickletools.markobject in before:
        below = below[: below.index(pickletools.markobject)]
        while (part := stack.pop()) is not None:
            parts.append(part)
    for _ in below:
        part = stack.pop()
        if part is None:
            raise ValueError("nothing lies where a value belongs")
        parts.append(part)
    return parts[::-1]
