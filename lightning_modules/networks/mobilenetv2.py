"""timm's MobileNetV2."""

from lightning_modules.networks.timm_classifier import TimmClassifier


class MobileNetV2(TimmClassifier):
    """MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381) and a small head.

    Arguments and errors are those of ``TimmClassifier``; the variants are ``mobilenetv2_…``.
    """

    family = "mobilenetv2_*"
