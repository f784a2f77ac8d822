"""Editions of a mesh for tests, made of a topology."""

import json

from flower_dhb.peer.watch.editions import FOLDER, edition_name
from flower_dhb.peer.wire.edition import MeshEdge, MeshEdition, MeshVertex


def edition(topology, **changes):
    """Edition 1 of a mesh with this graph, all of whose devices can be reached."""
    matrix = topology.mixing_matrix
    kept = {
        "number": 1,
        "begins": 1,
        "rounds": 20,
        "evaluate_every": 1,
        "vertices": {v: MeshVertex(None, f"127.0.0.1:{9000 + v}") for v in range(len(topology))},
        "edges": tuple(MeshEdge(a, b, float(matrix[a, b]), a) for a, b in topology.edges),
        "own_weights": {v: float(w) for v, w in enumerate(matrix.diagonal())},
    }
    return MeshEdition(**(kept | changes))


def write_editions(directory, *editions):
    """As they lie in the folder of a mesh."""
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    for each in editions:
        (folder / edition_name(each.number)).write_text(json.dumps(each.body()))
