"""The networks, by the name that weights.toml uses.

What a caller must know of a network stands in its class, see layers.Network.
"""

from vdeblur.networks.identity import Identity
from vdeblur.networks.layers import Network
from vdeblur.networks.lite import Lite
from vdeblur.networks.pvdnet import PVDNet

NETWORKS: dict[str, type[Network]] = {"identity": Identity, "lite": Lite, "pvdnet": PVDNet}
