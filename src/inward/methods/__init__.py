"""One paper, one folder; `model.py` is the paper, in its order."""

from inward.common.bases import OWN

OWN["huginn_raven"] = "inward.methods.huginn.model"
