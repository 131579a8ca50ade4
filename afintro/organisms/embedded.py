"""Keep ``from afintro.organisms.embedded import resolve``, which stands in exported model cards."""

from afintro.toys.embedded import ensure_built as resolve

__all__ = ["resolve"]
