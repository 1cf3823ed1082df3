"""Digits as strokes of a pen: for each digit its strokes, each a list of points (across, down) on a unit square."""

from math import cos, pi, sin

Stroke = list[tuple[float, float]]


def arc(across: float, down: float, width: float, height: float, start: float, end: float, steps: int = 6) -> Stroke:
    """Part of an ellipse around a point, from one angle to another in turns, clockwise from the right."""
    turns = [2 * pi * (start + (end - start) * step / steps) for step in range(steps + 1)]
    return [(across + width * cos(turn), down + height * sin(turn)) for turn in turns]


STROKES: dict[int, list[Stroke]] = {
    0: [arc(0.5, 0.5, 0.2, 0.32, -0.25, 0.78, 9)],
    1: [[(0.42, 0.28), (0.52, 0.18), (0.5, 0.5), (0.49, 0.82)]],
    2: [[*arc(0.48, 0.34, 0.18, 0.16, -0.5, 0.1), (0.45, 0.62), (0.3, 0.8), (0.5, 0.78), (0.72, 0.8)]],
    3: [[*arc(0.46, 0.33, 0.18, 0.15, -0.45, 0.22), *arc(0.46, 0.65, 0.21, 0.17, -0.22, 0.42)]],
    4: [[(0.36, 0.2), (0.3, 0.42), (0.3, 0.54), (0.7, 0.52)], [(0.64, 0.22), (0.62, 0.5), (0.6, 0.84)]],
    5: [[(0.36, 0.2), (0.34, 0.46), *arc(0.46, 0.62, 0.2, 0.19, -0.3, 0.4)], [(0.36, 0.2), (0.68, 0.18)]],
    6: [[(0.6, 0.16), (0.46, 0.3), (0.37, 0.5), *arc(0.5, 0.65, 0.15, 0.16, 0.5, 1.5, 8)]],
    7: [[(0.28, 0.24), (0.5, 0.22), (0.7, 0.22), (0.62, 0.4), (0.5, 0.62), (0.42, 0.84)]],
    8: [
        [
            *arc(0.5, 0.34, 0.14, 0.15, -0.1, -0.75, 8),
            *arc(0.5, 0.66, 0.17, 0.17, -0.25, 0.75, 8),
            *arc(0.5, 0.34, 0.14, 0.15, 0.25, -0.1),
        ]
    ],
    9: [[*arc(0.5, 0.36, 0.15, 0.16, 0.0, -1.0, 8), (0.64, 0.55), (0.6, 0.84)]],
}
