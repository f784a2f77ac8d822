"""The Flower Mod of a node: it reads what a message asks, and hands it to what answers that.

Nothing heavy is loaded before a message asks for it, so that a relayed round starts as fast as
without it.
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from flower_dhb.agent.policy import Policy
from flower_dhb.errors import ConfigError, FlowerDhbError
from flower_dhb.flower.calls import evaluate_of
from flower_dhb.flower.legacy import in_new_form
from flower_dhb.flower.mod import pass_on, take_turn, unprotected
from flower_dhb.flower.records import Answer, Instruction, Question, read_request
from flower_dhb.site.ending import Ending
from flower_dhb.site.protection import introduce, protection

__all__ = ["consensus_mod", "decentralize", "respond"]


def consensus_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Make a ClientApp an agent of a communication graph.

    Use it as the first mod, so that other mods (Flower's differential-privacy mods among
    them) see the plain records: `ClientApp(mods=[consensus_mod])`. On each message the
    agent combines its neighbors' payloads, lets the app train or evaluate, and answers
    with its own payload. Messages of another strategy pass through untouched.

    An app that raises or returns unusable arrays costs its agent the round, not its
    state: the answer says what happened. What whoever runs the node has said in its node config
    (`policy-…`) holds for all that leaves it.
    """
    return respond(message, context, call_next)


def respond(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    asked: Policy | None = None,
) -> Message:
    """What `consensus_mod` does. asked: the node's policy, asked before the app was loaded."""
    try:
        policy = asked or Policy.of_node_config(context.node_config)
        request = read_request(message.content)
        if request is not None and asked is None:
            policy.check_unasked()
    except FlowerDhbError as error:
        answer = Answer(ask="vertex", vertex=-1, failure=str(error))
        return Message(answer.to_records(), reply_to=message)
    if request is None:
        return pass_on(message, context, call_next, policy)
    ending = Ending()
    with ending.heeded():
        if isinstance(request, Question):
            answer = introduce(request, context, policy)
        elif isinstance(request, Instruction) and request.segment is not None:
            answer = _hold_segment(request, message, context, call_next, policy, ending)
        else:
            call, protect = ending.ends(call_next), protection(context)
            answer = take_turn(request, message, context, call, policy, protect)
    return Message(answer.to_records(), reply_to=message)


def decentralize(client_app: ClientApp) -> ClientApp:
    """Wrap a ClientApp that must not be touched: the same as `consensus_mod` in its mods.

    An app of Flower's older form, with a `client_fn`, can be wrapped as it is, too.

    Example: `app = decentralize(their_package.client_app.app)`.
    """
    if not isinstance(client_app, ClientApp):
        raise ConfigError(f"decentralize wraps a flwr ClientApp, got {type(client_app).__name__}")
    return _Decentralized(client_app)


def _hold_segment(
    instruction: Instruction,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    policy: Policy,
    ending: Ending,
) -> Answer:
    from flower_dhb.site.segment import hold_segment

    def evaluate(message: Message, context: Context) -> Message:
        return evaluate_of(call_next)(message, context)

    calls = {"evaluate": ending.ends(evaluate)}

    def turn(request: Instruction, message: Message) -> Answer:
        call = calls.get(request.ask, ending.ends(call_next))
        # What came through the relay may be sealed; what neighbors exchange themselves is not.
        protect = unprotected if request.encryption == "none" else protection(context)
        return take_turn(request, message, context, call, policy, protect)

    answer = hold_segment(instruction, message, context, turn, ending)
    return replace(answer, policy=str(policy))


class _Decentralized(ClientApp):
    def __init__(self, inner: ClientApp) -> None:
        super().__init__()
        self._inner = in_new_form(inner)

    def __call__(self, message: Message, context: Context) -> Message:
        return consensus_mod(message, context, self._inner)
