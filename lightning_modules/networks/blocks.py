"""What our own networks are built of."""

from torch import nn


def conv_block(
    channels_in: int,
    channels: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    pool: int | tuple[int, int] | None = None,
) -> nn.Sequential:
    """Convolution, perhaps max-pooling, batch normalisation, ReLU; pooling first leaves the others less work.

    Args:
        channels_in: Of what comes in.
        channels: Of what goes out.
        kernel: As for ``nn.Conv2d``.
        stride: As for ``nn.Conv2d``.
        padding: As for ``nn.Conv2d``.
        pool: As for ``nn.MaxPool2d``; None leaves it out.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False)]
    if pool is not None:
        layers.append(nn.MaxPool2d(pool))
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
