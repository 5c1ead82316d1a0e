"""The objective of each network's training, by its name in recipes; a file per paper."""

from vdeblur.train.objectives.base import Objective
from vdeblur.train.objectives.cdvd_tsp import CDVDTSPObjective
from vdeblur.train.objectives.clips import ClipObjective, NAFNetObjective
from vdeblur.train.objectives.estrnn import ESTRNNObjective
from vdeblur.train.objectives.flow_rnn import FlowRNNObjective
from vdeblur.train.objectives.lite import LiteObjective
from vdeblur.train.objectives.pvdnet import BIMNetObjective, PVDNetObjective
from vdeblur.train.objectives.spn import SPGANObjective, SPNObjective
from vdeblur.train.objectives.turtle import TurtleObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "bimnet": BIMNetObjective,
    "cdvd-tsp": CDVDTSPObjective,
    "clip": ClipObjective,
    "estrnn": ESTRNNObjective,
    "flow-rnn": FlowRNNObjective,
    "lite": LiteObjective,
    "nafnet": NAFNetObjective,
    "pvdnet": PVDNetObjective,
    "spgan": SPGANObjective,
    "spn": SPNObjective,
    "turtle": TurtleObjective,
}
