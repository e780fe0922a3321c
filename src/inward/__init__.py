"""Models that think inside instead of out loud: train them, change them, compare them, watch them.

Public names are loaded on first use, so that ``import inward`` (and ``inward --help``) stays light:
nothing here imports torch or transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "TRM": "inward.methods.trm.model",
    "TRMConfig": "inward.methods.trm.model",
    "TRMSettings": "inward.methods.trm.model",
    "Answer": "inward.common.thinking",
    "Coconut": "inward.methods.coconut.model",
    "Event": "inward.common.thinking",
    "HuginnForCausalLM": "inward.methods.huginn.model",
    "Thinker": "inward.thinker",
    "TiDAR": "inward.methods.tidar.model",
    "Trace": "inward.common.trace",
    "load": "inward.hub",
    "load_reference": "inward.methods.trm.reference",
    "save_reference": "inward.methods.trm.reference",
    "open": "inward.thinker:open_thinker",
    "page": "inward.viz.page:page",
    "shipped": "inward.hub",
    "show": "inward.viz.show",
}

if TYPE_CHECKING:
    from inward.common.thinking import Answer as Answer
    from inward.common.thinking import Event as Event
    from inward.common.trace import Trace as Trace
    from inward.hub import load as load
    from inward.hub import shipped as shipped
    from inward.methods.coconut.model import Coconut as Coconut
    from inward.methods.huginn.model import HuginnForCausalLM as HuginnForCausalLM
    from inward.methods.tidar.model import TiDAR as TiDAR
    from inward.methods.trm.model import TRM as TRM
    from inward.methods.trm.model import TRMConfig as TRMConfig
    from inward.methods.trm.model import TRMSettings as TRMSettings
    from inward.methods.trm.reference import load_reference as load_reference
    from inward.methods.trm.reference import save_reference as save_reference
    from inward.thinker import Thinker as Thinker
    from inward.thinker import open_thinker as open  # noqa: F401
    from inward.viz.page import page as page
    from inward.viz.show import show as show

__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        module, _, other = _HOME[name].partition(":")
        return getattr(import_module(module), other or name)
    raise AttributeError(f"module 'inward' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
