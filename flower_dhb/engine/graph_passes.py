"""Traced local steps made shorter: no repeated or idle operations, updates fused in place.

What `make_fx` records from `torch.func` is correct but wordy: views that change nothing,
transposes that undo each other, a bias added after its product. On small models the
time of a step is the number of its operations, so each one that goes is time saved; on
large models it is memory traffic, so the gradient of a weight is never stored: the
product that forms it adds straight into the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

__all__ = [
    "apply_updates",
    "call_directly",
    "draws",
    "drop_idle_gradients",
    "fold_constants",
    "fuse_bias",
    "is_random",
    "own_gradients",
    "simplify",
]

aten = torch.ops.aten

_RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.expand.default,
    aten.reshape.default,
}
_COPIES = {aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default}
_FILLS = {aten.ones_like.default, aten.zeros_like.default}
_CREATES = {aten.scalar_tensor.default, aten.full.default}
_DIRECT: dict[Any, Any] = {
    aten._log_softmax.default: torch._log_softmax,
    aten._log_softmax_backward_data.default: torch._log_softmax_backward_data,
    aten.add.Tensor: torch.add,
    aten.add_.Tensor: torch.Tensor.add_,
    aten.baddbmm.default: torch.baddbmm,
    aten.baddbmm_.default: torch.Tensor.baddbmm_,
    aten.bmm.default: torch.bmm,
    aten.gather.default: torch.gather,
    aten.mul.Tensor: torch.mul,
    aten.relu.default: torch.relu,
    aten.scatter_add.default: torch.scatter_add,
    aten.sum.dim_IntList: torch.sum,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: torch.Tensor.view,
}
_SWAP = aten.transpose.int
_PRODUCT = aten.bmm.default


def simplify(module: GraphModule) -> None:
    """Drop operations without effect and repeated ones, until nothing changes."""
    graph = module.graph
    while _drop_identities(graph) or _merge_equal(graph):
        graph.eliminate_dead_code()
    graph.eliminate_dead_code()


def fold_constants(module: GraphModule, device: torch.device) -> None:
    """Compute once what depends on no input: the start of the backward pass, for one.

    Of `ones_like(x)` only the shape of x matters, so the value of the loss, which nobody
    reads, is not computed at all.
    """
    graph = module.graph
    values: dict[Node, Any] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _mutates(node) or draws(node):
            continue
        if node.target in _FILLS and isinstance(node.args[0], Node):
            like = _example(node.args[0])
            fill = 1.0 if node.target is aten.ones_like.default else 0.0
            if like is not None:
                values[node] = torch.full(like.shape, fill, dtype=like.dtype, device=device)
            continue
        inputs = node.all_input_nodes
        if all(i in values for i in inputs) and (inputs or node.target in _CREATES):
            args = map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = node.target(*args[0], **args[1])
    for node, value in values.items():
        if not isinstance(value, torch.Tensor) or all(user in values for user in node.users):
            continue
        name = f"constant_{node.name}"
        module.register_buffer(name, value)
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    graph.eliminate_dead_code()


def call_directly(module: GraphModule) -> None:
    """Call torch's own functions, which are the same operations behind a shorter path."""
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.target = _DIRECT.get(node.target, node.target)


def fuse_bias(module: GraphModule) -> None:
    """Turn `bias + a @ b` into one operation, where the product is not used elsewhere."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.add.Tensor or node.kwargs:
            continue
        left, right = node.args
        for bias, product in ((left, right), (right, left)):
            if (
                isinstance(product, Node)
                and isinstance(bias, Node)
                and product.target is _PRODUCT
                and len(product.users) == 1
                and _shape(node) == _shape(product)
                and _dtype(bias) == _dtype(product)
            ):
                with graph.inserting_before(node):
                    fused = graph.call_function(
                        aten.baddbmm.default, (bias, *product.args), node.kwargs
                    )
                fused.meta = dict(node.meta)
                node.replace_all_uses_with(fused)
                break
    graph.eliminate_dead_code()


def apply_updates(module: GraphModule, n_parameters: int) -> None:
    """Let the graph do `parameter += step * gradient` itself, in place.

    The graph's first `n_parameters` inputs are the parameters and its first outputs
    their gradients. A last input `step` is added; the gradients leave the outputs. Each
    update happens as soon as nothing reads the old parameter any more.
    """
    graph = module.graph
    nodes = list(graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    output = nodes[-1]
    results = list(output.args[0])
    gradients, rest = results[:n_parameters], results[n_parameters:]
    with graph.inserting_after(inputs[-1]):
        step = graph.placeholder("step")
    output.args = (tuple(rest),)
    for parameter, gradient in zip(inputs, gradients, strict=False):
        if gradient is None:
            continue
        factors = _factors(gradient)
        if {_root(node) for node in factors or (gradient,)} & set(inputs[:n_parameters]):
            # A parameter that another update may change first, or this one while it reads.
            factors, gradient = None, _copied(gradient, step)
        order = {node: position for position, node in enumerate(graph.nodes)}
        before = [step, *(factors or (gradient,)), *_readers(parameter)]
        anchor = max((n for n in before if n is not output), key=lambda n: order[n])
        with graph.inserting_after(anchor):
            if factors:
                update = graph.call_function(
                    aten.baddbmm_.default, (parameter, *factors), {"alpha": step}
                )
            else:
                update = graph.call_function(
                    aten.add_.Tensor, (parameter, gradient), {"alpha": step}
                )
        update.meta = dict(parameter.meta)
    graph.eliminate_dead_code(lambda node: _mutates(node) or node.is_impure())


def drop_idle_gradients(module: GraphModule, n_parameters: int) -> None:
    """Let the gradient of a parameter that the model does not use be None, as autograd has it.

    Recorded are zeros, which an optimizer with weight decay would take for a gradient.
    """
    output = next(node for node in module.graph.nodes if node.op == "output")
    results = list(output.args[0])
    for place in range(n_parameters):
        node = results[place]
        while isinstance(node, Node) and node.target in (_RESHAPES | _COPIES):
            node = cast(Node, node.args[0])
        if isinstance(node, Node) and node.target is aten.zeros_like.default:
            results[place] = None
    output.args = (tuple(results),)
    module.graph.eliminate_dead_code()


def own_gradients(module: GraphModule, n_parameters: int) -> None:
    """Let each gradient have memory of its own: an optimizer changes the parameters in place.

    The graph's first outputs are the gradients; one may be another parameter itself.
    """
    nodes = list(module.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    results = list(nodes[-1].args[0])
    for place in range(n_parameters):
        if results[place] is not None:
            results[place] = _copied(results[place], inputs[-1])
    nodes[-1].args = (tuple(results),)
    module.graph.lint()


def is_random(graph: Graph) -> bool:
    """Whether an operation draws random numbers (dropout, for one)."""
    return any(draws(node) for node in graph.nodes)


def _drop_identities(graph: Graph) -> bool:
    changed = False
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            continue
        if not node.users and not _mutates(node):
            graph.erase_node(node)
            continue
        source = node.args[0]
        same = (
            node.target in _COPIES
            or (node.target in _RESHAPES and _shape(node) == _shape(source))
            or (node.target is aten.mul.Scalar and node.args[1] == 1)
        )
        if same and _dtype(node) == _dtype(source):
            node.replace_all_uses_with(source)
            changed = True
        elif node.target is _SWAP and source.target is _SWAP and node.args[1:] == source.args[1:]:
            node.replace_all_uses_with(source.args[0])
            changed = True
    return changed


def _merge_equal(graph: Graph) -> bool:
    seen: dict[Any, Node] = {}
    changed = False
    for node in list(graph.nodes):
        if node.op != "call_function" or _mutates(node) or draws(node):
            continue
        key = (node.target, _key(node.args), _key(tuple(sorted(node.kwargs.items()))))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
            changed = True
    return changed


def _key(value: Any) -> Any:
    """Hashable form of an argument; 1, 1.0 and True stay different."""
    if isinstance(value, list | tuple):
        return tuple(_key(v) for v in value)
    return value if isinstance(value, Node) else (type(value), repr(value))


def _factors(gradient: Node) -> tuple[Node, Node] | None:
    """Batched matrices whose product is the gradient and nothing else, if it is one."""
    swaps: list[Node] = []
    node = gradient
    while node.target is _SWAP and set(node.args[1:]) == {1, 2} and len(node.users) <= 1:
        swaps.append(node)
        node = node.args[0]  # type: ignore[assignment]
    if node.target is not _PRODUCT or len(node.users) > 1:
        return None
    a, b = node.args
    if not isinstance(a, Node) or not isinstance(b, Node):
        return None
    if len(swaps) % 2 == 0:
        return a, b
    graph = gradient.graph
    with graph.inserting_before(gradient):
        left = graph.call_function(_SWAP, (b, 1, 2))
        right = graph.call_function(_SWAP, (a, 1, 2))
    return left, right


def _readers(node: Node) -> Sequence[Node]:
    """Everything that reads a tensor's memory, through views too."""
    found: list[Node] = []
    for user in node.users:
        found.append(user)
        if _is_view(user):
            found.extend(_readers(user))
    return found


def _root(node: Node) -> Node:
    """The tensor whose memory a view shows."""
    while node.op == "call_function" and _is_view(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _copied(gradient: Node, inputs_end: Node) -> Node:
    """The gradient in memory of its own: a copy of a view of an input, else itself."""
    if _root(gradient).op != "placeholder":
        return gradient
    with gradient.graph.inserting_after(inputs_end if gradient.op == "placeholder" else gradient):
        return gradient.graph.call_function(aten.clone.default, (gradient,))


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(r.alias_info is not None for r in schema.returns)


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def draws(node: Node) -> bool:
    """Whether a node draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _shape(node: Node) -> tuple[int, ...] | None:
    found = _example(node)
    return None if found is None else tuple(found.shape)


def _dtype(node: Node) -> torch.dtype | None:
    found = _example(node)
    return None if found is None else cast(torch.dtype, found.dtype)


def _example(node: Node) -> Any:
    return node.meta.get("val", node.meta.get("tensor_meta"))
