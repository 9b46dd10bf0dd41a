"""The architectures, for teachers and students alike, and the adapter between their features.

Names and shapes of all tensors, in order, are those of the published CIFAR-100 checkpoints of RepDistiller and
mdistiller, which load unchanged. `classifier.py` is their interface, `registry.py` lists them,
`features.py` wraps networks of other libraries.
"""

from demkd.networks.classifier import Classifier, ImageSizeError, NetworkSourceError, UnknownLayerError
from demkd.networks.features import Adapter, WrappedNetwork, feature_shapes
from demkd.networks.registry import NETWORKS, Network, build_network, check_network, fetch_published, is_own_code

__all__ = [
    "NETWORKS", "Adapter", "Classifier", "ImageSizeError", "Network", "NetworkSourceError", "UnknownLayerError",
    "WrappedNetwork", "build_network", "check_network", "feature_shapes", "fetch_published", "is_own_code",
]  # fmt: skip
