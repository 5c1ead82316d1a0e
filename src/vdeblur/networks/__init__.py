"""The networks, under the names that weights.toml uses.

Each class declares what its callers must know; layers.Network explains these facts.
"""

from torch import nn

from vdeblur.networks.basicvsrpp import BasicVSRPP
from vdeblur.networks.bimnet import BIMNet
from vdeblur.networks.cdvd_tsp import CDVDTSP
from vdeblur.networks.dstnet import DSTNet
from vdeblur.networks.dstnet_plus import DSTNetPlus
from vdeblur.networks.estrnn import ESTRNN
from vdeblur.networks.flow_rnn import FlowRNN
from vdeblur.networks.identity import Identity
from vdeblur.networks.layers import Network
from vdeblur.networks.lite import Lite
from vdeblur.networks.nafnet import NAFNet
from vdeblur.networks.pvdnet import PVDNet
from vdeblur.networks.pwcnet import PWCNet
from vdeblur.networks.spn import SPN
from vdeblur.networks.spynet import SPyNet
from vdeblur.networks.turtle import Turtle

NETWORKS: dict[str, type[Network]] = {
    "basicvsrpp": BasicVSRPP,
    "cdvd-tsp": CDVDTSP,
    "dstnet": DSTNet,
    "dstnet-plus": DSTNetPlus,
    "estrnn": ESTRNN,
    "flow-rnn": FlowRNN,
    "identity": Identity,
    "lite": Lite,
    "nafnet": NAFNet,
    "pvdnet": PVDNet,
    "spn": SPN,
    "turtle": Turtle,
}
# Parts of networks that training can start from weights of their own; each has an official_name for their keys.
PARTS: dict[str, type[nn.Module]] = {"bimnet": BIMNet, "pwcnet": PWCNet, "spynet": SPyNet}
