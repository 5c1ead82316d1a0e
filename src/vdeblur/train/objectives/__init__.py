"""What each network is trained for, by the name that recipes use; a file per paper."""

from vdeblur.train.objectives.base import Objective
from vdeblur.train.objectives.flow_rnn import FlowRNNObjective
from vdeblur.train.objectives.lite import LiteObjective
from vdeblur.train.objectives.spn import SPGANObjective, SPNObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "flow-rnn": FlowRNNObjective,
    "lite": LiteObjective,
    "spgan": SPGANObjective,
    "spn": SPNObjective,
}
