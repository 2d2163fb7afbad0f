"""What every figure must satisfy."""

from itertools import combinations

import matplotlib.pyplot as plt

from workflow.results.plots import style

NOTE = "suite: cifar100_full_shortcut_fp, not comparable with published numbers"


def assert_nothing_overlaps(drawn, title: str) -> None:
    """Title, legends and panels keep apart, inside the figure, which is closed.

    drawn: the figure and what it shows, as a plot's function gives them. The suite that the heading
    names has a long name.
    """
    figure, shown = drawn
    style.add_heading_and_legend(figure, title, f"{shown} · {NOTE}")
    figure.canvas.draw()
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for one, two in combinations(boxes, 2):
        assert not one.shrunk(0.98, 0.98).overlaps(two), title
    size = figure.bbox
    assert all(size.x0 <= box.x0 and box.x1 <= size.x1 for box in boxes), title
    assert all(size.y0 <= box.y0 and box.y1 <= size.y1 for box in boxes), title
    plt.close(figure)
