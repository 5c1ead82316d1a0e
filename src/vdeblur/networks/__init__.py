"""The networks, by the name that weights.toml uses.

What a caller must know of a network stands beside its class: `feeding` (how streams.py feeds it), `multiple` (what
height and width must be divisible by) and `half_precision` (whether it may be computed in bf16 or fp16).
"""

from torch import nn

from vdeblur.networks.identity import Identity
from vdeblur.networks.lite import Lite

NETWORKS: dict[str, type[nn.Module]] = {"identity": Identity, "lite": Lite}
