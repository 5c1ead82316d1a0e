"""What each network is trained for, by the name that recipes use; a file per paper."""

from vdeblur.train.objectives.base import Objective

OBJECTIVES: dict[str, type[Objective]] = {}
