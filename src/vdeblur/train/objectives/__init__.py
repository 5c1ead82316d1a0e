"""What each network is trained for, by the name that recipes use; a file per paper."""

from vdeblur.train.objectives.base import Batch, Clip, Objective, unit_range
from vdeblur.train.objectives.cdvd_tsp import CDVDTSPObjective
from vdeblur.train.objectives.clips import ClipObjective, NAFNetObjective
from vdeblur.train.objectives.pvdnet import BIMNetObjective, PVDNetObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "bimnet": BIMNetObjective,
    "cdvd-tsp": CDVDTSPObjective,
    "clip": ClipObjective,
    "nafnet": NAFNetObjective,
    "pvdnet": PVDNetObjective,
}

__all__ = ["OBJECTIVES", "Batch", "Clip", "Objective", "unit_range"]
