"""How fast the ways to neighbors are, and what a round's payload takes on them."""

from __future__ import annotations

import grpc

from flower_dhb.metrics import size_text
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.doctor.finding import Finding, fine, note, wrong
from flower_dhb.peer.wire.measuring import Rate, Way, measure

__all__ = ["link"]

_LEAST_S = 2.0  # a link of 100 kbit/s takes this long for what is sent at a time


def link(settings: PeerSettings, j: int, payload: int, timeout_s: float) -> Finding:
    """How fast the way to a neighbor is whose peer runs, and what a round's payload takes on it.

    payload: its bytes, 0 if they are not known. timeout_s: for each answer of the neighbor.
    """
    subject = f"link to vertex {j}"
    options: list[tuple[str, int | str]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    address, tls = settings.dial[j], settings.tls
    if tls is None:
        channel = grpc.insecure_channel(address, options)
    else:
        options.append(("grpc.ssl_target_name_override", tls.server_name(j)))
        channel = grpc.secure_channel(address, tls.channel_credentials(), options)
    with channel:
        try:
            way = measure(channel, settings.vertex, max(timeout_s, _LEAST_S))
        except grpc.RpcError as error:
            return note(subject, *_not_measured(error))
    return _rated(subject, way, payload, settings.timing.ceiling_s)


def _not_measured(error: grpc.RpcError) -> tuple[str, str]:
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        text = "its peer is of an older version, which measures nothing"
        return text, "While both run, 'mesh status' shows what payloads take."
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "it has been measured too often lately", "Ask again in a quarter of an hour."
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time to what was sent to measure it", "Give it more '--timeout'."
    text = f"its rate cannot be measured: {error.details() or code.name}"
    return text, "See the log of the peer there: it says whom it turns away, and why."


def _rated(subject: str, way: Way, payload: int, ceiling_s: float) -> Finding:
    text = (
        f"round trip {1000 * way.round_trip_s:.1f} ms, {_rate_text(way.there)} there, "
        f"{_rate_text(way.back)} back"
    )
    if not payload:
        return fine(subject, text)
    there, back = (way.round_trip_s + payload / r.bytes_per_s for r in (way.there, way.back))
    text = (
        f"{text}; a payload of {size_text(payload)} takes {there:.2g} s there and {back:.2g} s "
        f"back, if nothing else goes there, and a round waits {ceiling_s:g} s at most"
    )
    if max(there, back) <= ceiling_s:
        return fine(subject, text)
    return wrong(
        subject,
        text,
        "No round can count this edge: set a larger 'timing.ceiling-s', train more local steps in "
        "fewer rounds, make the mesh anew with --compression int8, or use a smaller model.",
    )


def _rate_text(rate: Rate) -> str:
    text = f"{size_text(rate.bytes_per_s)}/s"
    return f"at least {text}" if rate.at_least else text
