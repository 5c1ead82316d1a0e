"""The networks, by the name that weights.toml uses.

What a caller must know of a network stands in its class, see layers.Network.
"""

from vdeblur.networks.basicvsrpp import BasicVSRPP
from vdeblur.networks.cdvd_tsp import CDVDTSP
from vdeblur.networks.dstnet import DSTNet
from vdeblur.networks.dstnet_plus import DSTNetPlus
from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.networks.identity import Identity
from vdeblur.networks.layers import Network
from vdeblur.networks.lite import Lite
from vdeblur.networks.nafnet import NAFNet
from vdeblur.networks.pvdnet import PVDNet
from vdeblur.networks.spn import SPN

NETWORKS: dict[str, type[Network]] = {
    "basicvsrpp": BasicVSRPP,
    "cdvd-tsp": CDVDTSP,
    "dstnet": DSTNet,
    "dstnet-plus": DSTNetPlus,
    "flow-rnn": FlowRNN,
    "identity": Identity,
    "lite": Lite,
    "nafnet": NAFNet,
    "pvdnet": PVDNet,
    "spn": SPN,
}
