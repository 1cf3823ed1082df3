"""The networks, one a file."""

from lightning_modules.networks.custom_cnn import CustomCNN
from lightning_modules.networks.line_reader import LineReader
from lightning_modules.networks.mobilenetv2 import MobileNetV2
from lightning_modules.networks.reference_cnn import ReferenceCNN
from lightning_modules.networks.timm_classifier import TimmClassifier

__all__ = ["CustomCNN", "LineReader", "MobileNetV2", "ReferenceCNN", "TimmClassifier"]
