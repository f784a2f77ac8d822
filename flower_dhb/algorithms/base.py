"""What a decentralized rule is: share something, then combine what came back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flower_dhb.errors import ConfigError, GraphError
from flower_dhb.types import Payload, State, Vector

__all__ = [
    "Algorithm",
    "Graph",
    "Products",
    "check_choice",
    "check_flag",
    "check_fraction",
    "check_positive",
    "check_share",
    "refuse_unmixed",
    "zeros_like",
]

ADAPT_THEN_COMBINE = "adapt-then-combine"
COMBINE_THEN_ADAPT = "combine-then-adapt"

# The graphs that rules run on: a symmetric mixing matrix on the agents' own links; one
# whose columns alone sum to 1, so that links may be one-way; or everyone with everyone.
UNDIRECTED, DIRECTED, COMPLETE = "undirected", "directed", "complete"

ON, OFF = "on", "off"
GUARDS = {"clipping": OFF, "screening": ON}  # settings of every rule, and their defaults
SCREENING_FACTOR = 4.0  # docs/decisions/0017

_EQUAL = 1e-9  # weights of a complete graph are quotients of small integers, in float64

# Inner products of an agent's whole vectors, by the pair of their names: float64, 0-d for
# one agent, `(n, 1)` for all of them.
Products: TypeAlias = Mapping[tuple[str, str], NDArray[np.float64]]


class Graph(Protocol):
    """What a rule must know of a communication graph."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def directed(self) -> bool:
        """Whether its links are one-way."""

    @property
    def mixing_matrix(self) -> NDArray[np.float64]:
        """`W`, `(n, n)`."""

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of a symmetric `W`."""


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """One decentralized training rule: pure, elementwise, for one agent or for all.

    A round, for an agent with state `x(k)`: the app trains locally and returns `z`;
    `outgoing(state, z)` is what the agent sends to its neighbors; the runtime forms
    `mixed = sum_j W[i, j] payload_j` for every vector of the payload, the agent's own
    included; `combine(state, z, mixed)` is the state `x(k+1)`.

    Only elementwise arithmetic is allowed in these two methods. So the same body serves
    vectors `(d,)` and stacks `(n, d)`, blocks of either, NumPy and torch; and the
    arithmetic stays in the dtype of its inputs. A rule that needs a norm or an angle
    declares the inner products that it wants (`products`); the runtime takes them of the
    whole vectors, once a round, and `measure` makes of them the numbers that the two
    methods find in `state.measured`.

    name: by which messages call the rule, and run configs and comparisons if it is registered;
    the class's own name unless it is given. graph: the kind of graph that it runs on. linear:
    whether, the measured numbers given, `combine` is a linear function of state, trained
    parameters and payloads; only then does the blocked kernel replace it by scaled additions.
    registered: whether `name` stands for the class (`register` says so).

    A round's number is `state.round + 1`; a rule may use it.

    Two settings, which every rule has, say how far an agent believes its neighbors
    (`agent.screening`; `docs/algorithm.md`, "Neighbors that lie"):

    screening : "on", "off" or float
        A payload that is absurdly far from the agent's own counts as missing. A number takes
        the place of the factor 4 in the bound; larger is more generous. Rules for directed
        links or for a server, whose weights cannot return to both ends, do not screen.
    clipping : "off", "on" or float
        Self-centered clipping: `x_i + sum_j W_ij clip(x_j - x_i, tau)` takes the place of the
        weighted sum. A number is the radius `tau`, of the distance between whole payloads, the
        same for all agents; "on" takes the lower median of an agent's distances to its
        neighbors in the round. A fixed radius clips an edge alike at both ends, so the network
        average is kept; "on" does not keep it.

    Raises ConfigError for other values, and for clipping where it would break the rule: that
    of push-sum, whose weights count what was sent; of the centralized rule, in which no agent
    has a payload of its own to begin from; and of rules that conserve a sum over agents
    (`conserved`): what a neighbor injects into their memory within the radius adds up from
    round to round and is never forgotten, so that clipping would promise what it cannot keep.
    """

    clipping: float | str = OFF
    screening: float | str = ON

    name: ClassVar[str]
    graph: ClassVar[str] = UNDIRECTED
    linear: ClassVar[bool] = False
    registered: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        # A subclass may compute something else: it declares for itself what it is.
        cls.linear = cls.__dict__.get("linear", False)
        cls.name = cls.__dict__.get("name", cls.__name__)
        cls.registered = False

    def __post_init__(self) -> None:
        # A NumPy scalar would lift float32 vectors to its own dtype; Python's does not.
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, each.name, value.item())
        for guard in GUARDS:
            object.__setattr__(self, guard, _guard(guard, getattr(self, guard)))
        if self.screening not in (ON, OFF) and self.graph != UNDIRECTED:
            raise ConfigError(f"'{self.name}' does not screen: it is not for undirected graphs")
        if self.clipping != OFF:
            self._check_clipping()

    def _check_clipping(self) -> None:
        why = ""
        if self.graph == DIRECTED:
            why = "its push weights count what was sent, so what is clipped would be lost"
        elif self.graph == COMPLETE:
            why = "it averages at a server, where no payload is an agent's own"
        elif self.conserved:
            why = (
                "it conserves a sum over all agents, in which what a neighbor injects adds up and "
                "is never forgotten, however short it is clipped; screening (the default) does "
                "work, or take 'dmsgd', 'dsgd' or 'safeguarded'"
            )
        if why:
            raise ConfigError(f"clipping cannot be had with '{self.name}': {why}")

    @property
    def screening_factor(self) -> float | None:
        """How generous screening is; None if the rule does not screen."""
        if self.screening == OFF or self.graph != UNDIRECTED:
            return None
        return SCREENING_FACTOR if isinstance(self.screening, str) else float(self.screening)

    @property
    def clips(self) -> bool:
        """Whether neighbors' payloads are clipped."""
        return self.clipping != OFF

    @property
    def clip_radius(self) -> float | None:
        """The radius of clipping that is set; None if each agent takes what it observes."""
        return None if isinstance(self.clipping, str) else float(self.clipping)

    @property
    @abstractmethod
    def vectors(self) -> tuple[str, ...]:
        """Names of the vectors that one payload carries, each as long as the parameters."""

    @property
    @abstractmethod
    def memory(self) -> tuple[str, ...]:
        """Names of the vectors that an agent remembers beside its parameters."""

    @property
    def conserved(self) -> tuple[str, ...]:
        """Names of the memory that makes up each agent's correction, empty if it has none.

        A correction is a linear function of an agent's memory that is zero at the start and
        whose sum over all agents every round keeps. The rule's optimum hangs on that sum, and
        no round forgets it: where one agent's part is lost, it is wrong for good. Memory that
        fades, such as momentum, is not named here.
        """
        return ()

    @property
    def shares_before_training(self) -> bool:
        """Whether `outgoing` does not depend on `z`, so that sending can overlap training."""
        return False

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of what a payload carries beside its vectors: one number each, shape `(..., 1)`."""
        return ()

    @property
    def exact(self) -> bool:
        """Whether full gradients lead every agent to the optimum, however the data differ."""
        return False

    @property
    def preserves_average(self) -> bool:
        """Whether the average over agents moves as if one agent took the average local step."""
        return True

    def start(self, parameters: Vector) -> State:
        """State before the first round: the common initial parameters, and zero memory."""
        return State(parameters, {name: zeros_like(parameters) for name in self.memory})

    def restart(self, state: State) -> State:
        """The state with its conserved memory as at the start, so that its correction is zero.

        Parameters and the other memory stay. Where all agents that exchange payloads have
        restarted, the sum of their corrections is zero, which is what the rule needs of it:
        the next round is a first round, from where they are.
        """
        first = self.start(state.parameters).memory
        memory = {**state.memory, **{m: first[m] for m in self.conserved}}
        return replace(state, memory=memory, measured={})

    @abstractmethod
    def outgoing(self, state: State, trained: Vector) -> Payload:
        """What the agent sends to each neighbor this round."""

    @abstractmethod
    def combine(self, state: State, trained: Vector, mixed: Payload) -> State:
        """The state after the round, from the weighted sums `mixed` of all payloads."""

    # --- what it measures -------------------------------------------------------------

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        """Pairs of vectors whose inner products `measure` needs.

        Names are `parameters`, `trained`, `step` (`z - x`), `moving` (`x` where local
        training changed it, 0 elsewhere) and `memory/NAME`.
        """
        return ()

    def measure(self, products: Products) -> Mapping[str, NDArray[np.float64]]:  # noqa: ARG002
        """Numbers for `state.measured`, in float64, of the shape of the products."""
        return {}

    # --- where it runs ----------------------------------------------------------------

    @property
    def relayed(self) -> bool:
        """Whether its payloads are vectors for graph neighbors, so that every runtime has it."""
        return self.graph == UNDIRECTED and not self.scalars

    def check(self, graph: Graph) -> None:
        """Refuse a graph of another kind, or one on which the rule diverges.

        Raises GraphError for the kind, ConfigError if no step size would be stable.
        """
        if graph.directed:
            if self.graph != DIRECTED:
                raise GraphError(
                    f"'{self.name}' needs an undirected graph with a doubly stochastic mixing "
                    f"matrix; '{graph.name}' is directed. Only push-sum ('sgp') runs on one-way "
                    "links"
                )
            return
        if self.graph == COMPLETE:
            matrix = graph.mixing_matrix
            if not np.abs(matrix - 1.0 / len(matrix)).max() <= _EQUAL:
                raise GraphError(
                    f"'{self.name}' averages over all agents, which '{graph.name}' does not let "
                    "meet; use complete:N with weights='uniform', or the engine, which gives this "
                    "rule a graph of its own"
                )
            return
        self.check_spectrum(graph)

    def check_spectrum(self, graph: Graph) -> None:  # noqa: B027 (most rules have no limit)
        """Raise ConfigError if the rule diverges on this graph whatever the step size."""

    @classmethod
    def settings(cls) -> list[str]:
        """Names of what can be set: those of all rules first."""
        return [f.name for f in fields(cls) if f.init]

    def to_config(self) -> dict[str, Any]:
        """Name and settings as plain values; `algorithm_from_config` is the inverse.

        The name of a rule that is not registered is where it is: `package.module:Rule`.
        Clipping and screening are named where they are not at their defaults.
        """
        values = {name: getattr(self, name) for name in self.settings()}
        for guard, default in GUARDS.items():
            if values[guard] == default:
                del values[guard]
        kind = type(self)
        place = f"{kind.__module__}:{kind.__qualname__}"
        return {"name": self.name if kind.registered else place, **values}


def zeros_like(vector: Vector) -> Vector:
    """Zeros of the same shape, dtype and device, for NumPy arrays and torch tensors."""
    return (
        np.zeros_like(vector) if isinstance(vector, np.ndarray) else vector.new_zeros(vector.shape)
    )


def _guard(what: str, value: object) -> float | str:
    """`on`, `off` or a number; flags mean the words."""
    if isinstance(value, bool):
        return ON if value else OFF
    if isinstance(value, str) and value in (ON, OFF):
        return value
    if isinstance(value, int | float) and 0.0 < value < float("inf"):
        return float(value)
    raise ConfigError(f"{what} must be 'on', 'off' or a number above 0, got {value!r}")


def check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{what} must be one of {', '.join(choices)}; got {value!r}")


def check_fraction(what: str, value: object) -> None:
    """Raise ConfigError unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ConfigError(f"{what} must be a number in [0, 1), got {value!r}")


def check_share(what: str, value: object) -> None:
    """Raise ConfigError unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{what} must be a number in [0, 1], got {value!r}")


def check_positive(what: str, value: object) -> None:
    """Raise ConfigError unless `value` is a finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0.0 < value < float("inf"):  # type: ignore[operator]
        raise ConfigError(f"{what} must be a finite number above 0, got {value!r}")


def refuse_unmixed(who: str, graph: Graph, momentum: float, momentum_mixing: float) -> None:
    """Raise ConfigError where mixed momentum `b` makes disagreement grow, whatever the step size.

    A mode with eigenvalue u of W is `r^2 - (u + b v) r + b v` without steps, with
    `v = 1 - w + w u`: stable only if `1 + u + 2 b v > 0`, which holds on every graph if
    `w <= 0.5`.
    """
    if momentum_mixing <= 0.5:
        return  # so the graph's spectrum need not be known
    lowest = graph.smallest_eigenvalue
    mixed = 1.0 - momentum_mixing + momentum_mixing * lowest
    if not 1.0 + lowest + 2.0 * momentum * mixed > 0.0:
        raise ConfigError(
            f"{who} with momentum {momentum} and momentum_mixing {momentum_mixing} diverges for "
            f"every step size on this graph: the smallest eigenvalue of its mixing matrix is "
            f"{lowest:.4g}. Remedies: momentum_mixing <= 0.5, or lazy weights (I + W) / 2 "
            "(weights='lazy')"
        )


def check_flag(what: str, value: object) -> None:
    """Raise ConfigError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{what} must be true or false, got {value!r}")
