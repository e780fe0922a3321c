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
    "Trace": "inward.common.trace",
    "load": "inward.hub",
    "load_reference": "inward.methods.trm.reference",
    "save_reference": "inward.methods.trm.reference",
    "shipped": "inward.hub",
}

if TYPE_CHECKING:
    from inward.common.trace import Trace as Trace
    from inward.hub import load as load
    from inward.hub import shipped as shipped
    from inward.methods.trm.model import TRM as TRM
    from inward.methods.trm.model import TRMConfig as TRMConfig
    from inward.methods.trm.model import TRMSettings as TRMSettings
    from inward.methods.trm.reference import load_reference as load_reference
    from inward.methods.trm.reference import save_reference as save_reference

__all__ = [*_HOME, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inward' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
