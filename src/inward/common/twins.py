"""A model to think with beside the one that is shared.

A model object belongs to many callers: threads that ask it, streams that are half read, a training
step. Whatever a call needs of it otherwise (evaluation mode, faster layers, another attention)
would be felt by the others, and would stay behind when the call is abandoned. So a call runs a
*twin*: modules of its own over the same parameters.

    twin = Twin(model)      # the model is only looked at
    twin.model(...)         # evaluation mode; a module of its own in the place of each
    twin.of(layer)          # the one in the place of `layer`

A twin holds the model's very parameters, so a step of an optimizer is seen in the middle of a
stream, and its hooks are the model's, those too that come later. Everything else is as it was when
the twin was made: modes, buffers, attributes. It costs microseconds a module and no memory worth
naming.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache, partial
from types import MethodType
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

Kind = TypeVar("Kind", bound=nn.Module)
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
"""Tables of a module's hooks, by their numbers"""
_SHARED = ("_parameters", *_HOOKS)
"""What a twin sees change"""


class Twin(Generic[Kind]):
    """model: the twin of the model that it was made of, in evaluation mode."""

    def __init__(self, model: Kind) -> None:
        self._original = model  # its modules are known by their ids, so they must not go
        self._twins: dict[int, nn.Module] = {}
        self.model = cast(Kind, self._made(model))
        for own in self._twins.values():
            self._point(own)

    def of(self, module: nn.Module) -> Any:
        """What stands in the twin where `module` stands in the model."""
        return self._twins[id(module)]

    def replace(self, old: object, new: object) -> None:
        """Wherever a module of the twin holds `old` as an attribute, let it hold `new`."""
        for own in self._twins.values():
            for name, value in own.__dict__.items():
                if value is old:
                    own.__dict__[name] = new

    def apart(self, module: nn.Module) -> None:
        """Let hooks that are registered on the twin's module not be called by the model's."""
        own = self.of(module)
        for name in _HOOKS:
            own.__dict__[name] = _Hooks(module.__dict__[name])

    def _made(self, module: nn.Module) -> nn.Module:
        known = self._twins.get(id(module))
        if known is not None or isinstance(module, torch.jit.ScriptModule):
            return module if known is None else known  # a script's state is not Python's
        own = self._twins[id(module)] = object.__new__(type(module))
        for name, value in list(module.__dict__.items()):
            if isinstance(value, dict) and name not in _SHARED:
                value = copy.copy(value)
            own.__dict__[name] = value
        own.__dict__["training"] = False
        if isinstance(own, PreTrainedModel):
            own.__class__ = _hooked_as(type(own))
            own.__dict__["_original"] = weakref.ref(module)
        parts = own.__dict__["_modules"]
        for name, part in parts.items():
            parts[name] = None if part is None else self._made(part)
        return own

    def _point(self, own: nn.Module) -> None:
        """Attributes that hold modules, or methods of modules, outside of torch's tables."""
        for name, value in own.__dict__.items():
            if name != "_modules":
                own.__dict__[name] = self._pointed(value)

    def _pointed(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._twins.get(id(value), value)
        if isinstance(value, MethodType):
            own = self._twins.get(id(value.__self__))
            return value if own is None else MethodType(value.__func__, own)
        if isinstance(value, partial):
            return _like(value, partial(self._pointed(value.func), *map(self._pointed, value.args)))
        kind: Any = type(value)
        if kind in (list, tuple) and any(isinstance(item, nn.Module) for item in value):
            return kind(map(self._pointed, value))
        return value


class _Hooks(OrderedDict[int, Any]):
    """Those of a module, as they are at each moment, and then a twin's own."""

    def __init__(self, theirs: OrderedDict[int, Any]) -> None:
        super().__init__()
        self.theirs = theirs

    def __len__(self) -> int:
        return len(self.theirs) + OrderedDict.__len__(self)  # asked at every call of a module

    def __contains__(self, number: object) -> bool:
        return number in self.theirs or super().__contains__(number)

    def __iter__(self) -> Iterator[int]:
        yield from [number for number, _ in self.items()]

    def items(self) -> Any:
        """A list: other threads may register hooks while these are called."""
        while True:
            try:
                return [*self.theirs.items(), *super().items()]
            except RuntimeError:  # one did so just now
                continue

    def values(self) -> Any:
        """As `items`."""
        return [hook for _, hook in self.items()]


_INSTALLED = "_output_capturing_hooks_installed"


@lru_cache(maxsize=256)
def _hooked_as(kind: type) -> type:
    """The same class, but whether transformers has hooked a model, to give hidden states, is
    answered and noted by the twin's original, whose hooks they are. The name is the same, because
    transformers looks up by it what can be captured."""

    def read(self: Any) -> bool:
        return getattr(self._original(), _INSTALLED, False)

    def write(self: Any, value: bool) -> None:
        setattr(self._original(), _INSTALLED, value)

    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), {**about, _INSTALLED: property(read, write)})


def _like(old: partial[Any], new: partial[Any]) -> partial[Any]:
    """With the keywords and attributes of the old one."""
    found = partial(new.func, *new.args, **old.keywords)
    found.__dict__.update(old.__dict__)
    return found
