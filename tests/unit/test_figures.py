"""Figures: nothing lies on anything else, and what must be read is there."""

from io import BytesIO

import numpy as np
import pytest

from flower_dhb import ConfigError, Topology
from flower_dhb.figures.positions import on_circle, places, wrapped_edges
from flower_dhb.figures.runs import convergence_figure
from flower_dhb.figures.splits import count_classes, draw_split
from flower_dhb.figures.topologies import draw
from flower_dhb.problems.splits import split

pytestmark = pytest.mark.thorough

FORMS = [
    *("ring:16", "complete:8", "star:9", "path:2", "path:9", "path:12", "torus:4x4", "torus:2x3"),
    *("torus:3x5", "bipartite:4x6", "bipartite:1x1", "hypercube:1", "hypercube:3", "hypercube:4"),
    *("hypercube:5", "exponential:12", "erdos-renyi:16:0.25:1", "erdos-renyi:16:0.3:1"),
    *("random-regular:10:3:1", "small-world:20:4:0.2:1", "path:1", "ring:100"),
]


def png(figure):
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=60)
    data = stream.getvalue()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 2_000
    return data


def texts(figure):
    """All that can be read in a figure."""
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def extents(figure, kept):
    """Boxes of texts, in pixels."""
    from matplotlib.text import Text

    figure.canvas.draw()
    found = [t for t in figure.findobj(Text) if kept(t)]
    return [t.get_window_extent() for t in found]


# --- topologies --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_graph_is_drawn_with_its_name_and_its_vertices(form):
    topology = Topology.parse(form)
    figure = draw(topology)
    assert png(figure)
    found = texts(figure)
    assert form in found
    assert any(text.startswith(f"{topology.n_agents} agents, ") for text in found)
    if topology.n_agents <= 64:
        assert {str(v) for v in range(topology.n_agents)} <= set(found)


@pytest.mark.parametrize("form", FORMS)
def test_vertices_stand_apart_within_the_picture(form):
    topology = Topology.parse(form)
    xy = places(topology)
    assert xy.shape == (topology.n_agents, 2)
    assert np.abs(xy).max() <= 1.0 + 1e-9
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    # A vertex is drawn with a radius of about 0.22 / sqrt(n), at most 0.06.
    assert apart.min() > 2 * min(0.06, 0.22 / topology.n_agents**0.5)


@pytest.mark.parametrize(
    "form", ["erdos-renyi:16:0.25:1", "erdos-renyi:16:0.3:1", "erdos-renyi:12:0.3:3"]
)
def test_no_edge_of_a_random_graph_runs_through_a_vertex_that_is_not_its_own(form):
    topology = Topology.parse(form)
    xy = places(topology)
    for a, b in topology.edges:
        for v in set(range(topology.n_agents)) - {a, b}:
            along, to = xy[b] - xy[a], xy[v] - xy[a]
            share = np.clip(to @ along / (along @ along), 0, 1)
            assert np.linalg.norm(to - share * along) > 0.06, (a, b, v)


def test_a_drawing_repeats():
    topology = Topology.parse("erdos-renyi:16:0.3:1")
    np.testing.assert_array_equal(places(topology), places(topology))


def test_a_torus_is_a_grid_whose_edges_lead_out_and_in_again():
    topology = Topology.torus(3, 4)
    xy = places(topology)
    assert len(np.unique(xy[:, 0].round(9))) == 4
    assert len(np.unique(xy[:, 1].round(9))) == 3
    wrapped = wrapped_edges(topology)
    assert wrapped == {
        **{(4 * row, 4 * row + 3): (-1, 0) for row in range(3)},
        **{(column, 8 + column): (0, 1) for column in range(4)},
    }
    names = texts(draw(topology))
    # Once in its vertex; corners also at the end of two edges, others on the rim of one.
    assert [names.count(name) for name in ("0", "1", "4", "5")] == [3, 2, 2, 1]


@pytest.mark.parametrize("name", ["ring", "torus", "bipartite", "hypercube", "ring:x", "custom"])
def test_a_graph_of_ones_own_may_have_any_name(name):
    edges = [(0, 1), (1, 2), (2, 0), (2, 3)]
    topology = Topology.from_edges(edges, name=name)
    assert png(draw(topology))
    assert wrapped_edges(topology) == {}


@pytest.mark.parametrize("name", ["torus:2x3", "bipartite:2x3", "hypercube:3"])
def test_a_name_that_does_not_fit_the_graph_is_only_a_name(name):
    topology = Topology.from_edges([(0, 1), (1, 2), (2, 0), (2, 3)], name=name)
    assert png(draw(topology))
    assert wrapped_edges(topology) == {}


@pytest.mark.parametrize("name", ["torus:2x2", "ring:4", "star:4", "path:4", "hypercube:2"])
def test_a_name_of_the_right_size_is_only_a_name_either(name):
    """A graph is drawn by what it was built as: this one has a triangle and a tail."""
    edges = [(0, 1), (1, 2), (2, 0), (2, 3)]
    named, plain = (Topology.from_edges(edges, name=n) for n in (name, "custom"))
    np.testing.assert_array_equal(places(named), places(plain))
    assert not on_circle(named)
    assert on_circle(Topology.ring(4))
    assert not np.allclose(places(named), places(Topology.parse(name)))


def test_negative_weights_are_dashed_and_said_to_be():
    # Rows sum to 1; eigenvectors (1, 1, 1), (1, 0, -1), (1, -2, 1) give 1, 0.85 and -0.65.
    matrix = [[0.65, 0.55, -0.2], [0.55, -0.1, 0.55], [-0.2, 0.55, 0.65]]
    triangle = Topology.from_edges([(0, 1), (1, 2), (0, 2)], matrix, name="triangle")
    figure = draw(triangle)
    assert png(figure)
    assert any("mixing weights -0.2 to 0.55 (dashed: negative)" in text for text in texts(figure))
    styles = [line.get_linestyle() for line in figure.axes[0].lines]
    assert styles.count("--") == 1
    assert styles.count("-") == 2
    assert not any("negative" in text for text in texts(draw(Topology.ring(4))))


def test_heavier_edges_are_drawn_stronger():
    topology = Topology.from_edges([(0, 1), (0, 2), (0, 3), (3, 4)])  # 1/4, 1/4, 1/4, 1/3
    widths = [line.get_linewidth() for line in draw(topology).axes[0].lines]
    assert widths[0] == widths[1] == widths[2] < widths[3]


@pytest.mark.parametrize("form", ["ring:16", "torus:4x4", "path:9", "erdos-renyi:16:0.3:1"])
def test_titles_are_inside_the_picture_and_above_each_other(form):
    figure = draw(Topology.parse(form))
    name, about = extents(figure, lambda t: t.get_text() == form or " agents, " in t.get_text())
    if name.y0 < about.y0:
        name, about = about, name
    assert about.y1 <= name.y0
    assert max(name.x1, about.x1) <= figure.bbox.x1
    assert name.y1 <= figure.bbox.y1
    assert name.x0 == pytest.approx(about.x0, abs=4)  # pixels: the side bearing of a letter
    (axes,) = figure.axes
    assert axes.get_window_extent().y1 <= about.y0


# --- convergence -------------------------------------------------------------------------


def row(k, **changes):
    values = {
        "round": k,
        "accuracy_mean": 0.5 + 0.04 * k,
        "accuracy_worst": 0.4 + 0.04 * k,
        "accuracy_best": 0.6 + 0.03 * k,
        "accuracy_average_model": 0.55 + 0.04 * k,
        "consensus_distance": 2.0 / k,
        "missing": [],
    }
    return values | changes


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def test_accuracy_and_consensus_distance_are_drawn_with_titles_and_labels():
    figure = convergence_figure([row(k) for k in range(1, 9)], "demo: dmsgd on ring:16")
    assert png(figure)
    found = texts(figure)
    for text in ("demo: dmsgd on ring:16", "Test accuracy", "Consensus distance", "round"):
        assert text in found
    for text in ("mean over agents", "worst to best agent", "average model (observer only)"):
        assert text in found
    left, right = figure.axes
    mean = lines_of(left)["mean over agents"]
    np.testing.assert_allclose(mean.get_ydata(), [0.5 + 0.04 * k for k in range(1, 9)])
    assert left.get_ylim() == (0.0, 1.02)
    assert right.get_yscale() == "log"
    assert "100%" in found
    assert not any("missing" in text for text in found)


def test_an_axis_within_a_decade_has_numbers():
    figure = convergence_figure([row(k, consensus_distance=1.5 + 0.1 * k) for k in range(1, 9)])
    figure.canvas.draw()
    low, high = figure.axes[1].get_ylim()
    ticks = [
        *figure.axes[1].yaxis.get_majorticklabels(),
        *figure.axes[1].yaxis.get_minorticklabels(),
    ]
    seen = [t.get_text() for t in ticks if t.get_text() and low <= t.get_position()[1] <= high]
    assert "2" in seen


def test_an_empty_history():
    figure = convergence_figure([])
    assert png(figure)
    assert texts(figure).count("not measured") == 2


def test_a_history_without_accuracy():
    nothing = dict.fromkeys(
        ["accuracy_mean", "accuracy_worst", "accuracy_best", "accuracy_average_model"]
    )
    figure = convergence_figure([row(k, **nothing) for k in (1, 2)])
    assert png(figure)
    assert texts(figure).count("not measured") == 1


def test_rounds_that_were_not_evaluated_are_left_out():
    rows = [row(1), {"round": 2, "accuracy_mean": None, "missing": []}, row(3)]
    figure = convergence_figure(rows)
    assert png(figure)
    assert lines_of(figure.axes[0])["mean over agents"].get_xdata().tolist() == [1, 3]


def test_agents_that_agree_exactly_have_no_logarithm():
    figure = convergence_figure([row(k, consensus_distance=0.0) for k in (1, 2)])
    assert png(figure)
    assert figure.axes[1].get_yscale() == "linear"


def test_rounds_with_missing_agents_are_marked_and_explained():
    rows = [row(k, missing=[2] if k in (3, 5) else []) for k in range(1, 9)]
    figure = convergence_figure(rows)
    assert png(figure)
    assert "an agent was missing" in texts(figure)
    for axes in figure.axes:
        assert list(lines_of(axes)["an agent was missing"].get_xdata()) == [3, 5]


def test_texts_of_the_convergence_figure_do_not_overlap():
    figure = convergence_figure([row(k) for k in range(1, 9)], "demo: dmsgd on ring:16")
    titles = {"demo: dmsgd on ring:16", "Test accuracy", "Consensus distance", "round"}
    boxes = extents(figure, lambda t: t.get_text() in titles)
    assert len(boxes) == 5
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


# --- splits ------------------------------------------------------------------------------


def test_a_split_is_counted_by_class_and_agent():
    labels, parts = np.array([0, 2, 2, 1, 0, 0]), [np.array([0, 4, 1]), np.array([2, 3, 5])]
    assert count_classes(labels, parts).tolist() == [[2, 1], [0, 1], [1, 1]]
    assert count_classes(labels, [parts[0]]).tolist() == [[2], [0], [1]]  # no one has class 1
    with pytest.raises(ConfigError, match="got 0 agents"):
        count_classes(labels, [])
    with pytest.raises(ConfigError, match="classes from 0 on"):
        count_classes(labels - 1, parts)


@pytest.mark.parametrize("agents", [5, 16, 64])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_picture_of_a_split_has_all_that_can_be_read(agents, classes):
    labels = np.random.default_rng(0).integers(0, classes, 6400)
    parts = split(labels, agents, "dirichlet:0.3", 0)
    figure = draw_split(labels, parts)
    assert png(figure)
    found = texts(figure)
    counts = count_classes(labels, parts)
    least, most = counts.sum(axis=0).min(), counts.sum(axis=0).max()
    assert {f"agent\n6,400 samples, {least:,} to {most:,} per agent", "class"} <= set(found)
    if max(agents, classes) <= 20:
        assert {str(count) for count in counts[counts > 0]} <= set(found)
        boxes = extents(figure, lambda t: t.get_text().isdecimal() and t.axes is not None)
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :])
