"""The list of networks."""

import torch

from demkd.networks import NETWORKS, build_network, profile_network
from demkd.pipeline.results import NetworkListing, NetworkReport

_PICTURE = (3, 32, 32)


def list_networks(*, classes: int) -> NetworkListing:
    """Profile every network of this project for 32 x 32 pictures; none of them gets a weight."""
    reports = []
    for name in NETWORKS:
        with torch.device("meta"):
            network = build_network(name, classes=classes)
        profile = profile_network(network, _PICTURE)
        reports.append(NetworkReport(name=name, parameters=profile.parameters, features=profile.features))
    return NetworkListing(picture=_PICTURE, classes=classes, networks=tuple(reports))
