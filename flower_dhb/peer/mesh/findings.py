"""What of a fleet needs somebody, and what is worth knowing: judged from the devices' answers.

Each finding says who, what, and what to do. What passes by itself, such as a connection that
has just broken, needs nobody.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flower_dhb.peer.mesh.status import OVER, FleetStatus
from flower_dhb.peer.sentences import in_words
from flower_dhb.peer.wire import relay_pb2 as pb

__all__ = ["KINDS", "Finding", "Kind", "findings"]

_SETTLES_S = 15.0  # a connection or a device that is gone for less comes back by itself
_RECENT_S = 600.0  # what has happened since then may still be going on
_ENOUGH = 8  # rounds from which "took part in few of them" can be said
_DAY_S = 86400.0
_EXPIRES_DAYS = 30
_CLOCK_S = 60.0
# A link is slow if it takes this much, this share of a round, and so many times the usual.
_SLOW_LINK_S, _SLOW_SHARE, _SLOW_TIMES = 0.1, 0.3, 3.0


@dataclass(frozen=True)
class Kind:
    """A kind of finding. title: in few words. needs: whether it needs somebody.

    remedy: what to do about several of the kind, where each has a reason of its own.
    """

    title: str
    remedy: str = ""
    needs: bool = True


# By gravity.
KINDS: dict[str, Kind] = {
    "split": Kind("the network is split", "Mend the edges between the parts."),
    "ended": Kind("ended", "Their logs say why."),
    "silent": Kind("silent", "See whether they have power and network, then their logs."),
    "double": Kind("two devices with one certificate", "Stop one of each two."),
    "app-failing": Kind("the app fails", "Mend it there; after 10 rounds in a row a peer ends."),
    "disk": Kind("the disk takes nothing", "Free space, or mount or replace it."),
    "stalled": Kind("stalled", "See whom they wait for; if nobody, their apps hang."),
    "alone": Kind("alone", "See to their edges."),
    "edge-down": Kind("edges down", "See to the network between them, and to both logs."),
    "certificate": Kind("the certificate ends", "flower-dhb mesh renew MESH --all."),
    "authority": Kind("the authority ends", "flower-dhb mesh renew MESH --authority."),
    "clock": Kind("the clock is wrong", "Set it (NTP): certificates are judged by it."),
    "liar": Kind("sends what nobody believes", "See whether the app diverges there."),
    "evaluation-failing": Kind("the app's evaluation fails", "Mend the app's evaluate."),
    "too-slow": Kind("links too slow for any round", "Set a larger timing.ceiling-s."),
    "left-out": Kind("left out of most rounds", "Give them fewer local steps."),
    "edge-lost": Kind("edges that have just broken", needs=False),
    "gone": Kind("just gone", needs=False),
    "unreachable": Kind("not reachable from here", needs=False),
    "unknown": Kind("nothing is known", needs=False),
    "behind": Kind("does not have the newest instructions", needs=False),
    "versions": Kind("other versions", needs=False),
    "other-code": Kind("other code of the app", needs=False),
    "slow-link": Kind("slow links", needs=False),
    "slow-device": Kind("slow devices", needs=False),
    "one-sided": Kind("rounds that counted at one end only", needs=False),
    "damaged": Kind("a damaged file was passed over", needs=False),
}
_RANK = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Finding:
    """What of a fleet is not as it should be.

    kind: one of `KINDS`. who: in words; place: the same in short, `3` or `3-4`. vertices: of
    the devices. what: the matter. remedy: what to do, a sentence.
    """

    kind: str
    who: str
    place: str
    vertices: tuple[int, ...]
    what: str
    remedy: str

    @property
    def needs(self) -> bool:
        """Whether it needs somebody."""
        return KINDS[self.kind].needs

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.who}: {self.what}. {self.remedy}".rstrip()


def findings(fleet: FleetStatus) -> list[Finding]:
    """Everything that is found in a fleet, the gravest first."""
    found = [finding for judge in _JUDGES for finding in judge(fleet)]
    return sorted(found, key=lambda f: (_RANK[f.kind], f.vertices))


def _one(fleet: FleetStatus, kind: str, vertex: int, what: str, remedy: str) -> Finding:
    return Finding(kind, fleet.called(vertex), str(vertex), (vertex,), what, remedy)


def _edge(kind: str, a: int, b: int, what: str, remedy: str) -> Finding:
    return Finding(kind, f"edge {a}-{b}", f"{a}-{b}", (a, b), what, remedy)


def _vertices(found: list[int]) -> str:
    *first, last = _ranges(found).split(", ")
    if len(found) == 1:
        return f"vertex {last}"
    return f"vertices {', '.join(first)} and {last}" if first else f"vertices {last}"


def _ranges(found: list[int]) -> str:
    """Vertices as `0, 1, 4 to 9`."""
    runs: list[list[int]] = []
    for v in sorted(found):
        if runs and v == runs[-1][-1] + 1:
            runs[-1].append(v)
        else:
            runs.append([v])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _log_of(vertex: int) -> str:
    return f"journalctl -u flower-dhb-peer@vertex-{vertex}"


# --- devices that do not answer ---------------------------------------------------------


def _absent(fleet: FleetStatus) -> Iterator[Finding]:
    for v in fleet.vertices:
        state, why = fleet.state(v), fleet.failures.get(v, "it was not asked")
        if state == "ended":
            remedy = f"Its log, vertex-{v}/peer.log, says why; start it again when that is mended."
            yield _one(fleet, "ended", v, fleet.gone[v], remedy)
        elif state == "heard" and fleet.addresses.get(v):
            by = sorted(j for j, n in fleet.told_of(v).items() if n.up)
            yield _one(
                fleet, "unreachable", v, f"trains, as {_vertices(by)} can hear, but {why}",
                "If you want its own answers, let this computer through to that address.",
            )  # fmt: skip
        elif state == "silent":
            yield _silent(fleet, v, why)
        elif state == "unknown":
            yield _one(
                fleet, "unknown", v, "it has no address, and no neighbor of it answered",
                "Ask again when a neighbor answers.",
            )  # fmt: skip


def _silent(fleet: FleetStatus, vertex: int, why: str) -> Finding:
    told = fleet.told_of(vertex)
    seen_s = fleet.seen_s(vertex)
    ago = "never seen" if seen_s is None else f"last seen {in_words(seen_s)} ago"
    heard = f"; {_vertices(sorted(told))} cannot hear it either" if told else ""
    sight = fleet.sights.get(vertex)
    if sight is not None and sight.left_s is not None and fleet.now_s > sight.at + sight.left_s:
        heard += "; at its pace its run would be over by now, so it may have finished"
    kind = "gone" if told and max(n.down_s for n in told.values()) < _SETTLES_S else "silent"
    if "nothing listens" in why:
        remedy = f"Look at its log there ({_log_of(vertex)}), and start its peer."
    elif "does not answer" in why:
        remedy = "Its process is stopped or hangs, or its machine is overloaded: restart it."
    elif any(word in why for word in ("ertificate", "TLS", "andshake")):
        remedy = f"See to its certificate: flower-dhb mesh renew MESH --vertex {vertex}."
    else:
        remedy = f"See whether it has power and network, then its log ({_log_of(vertex)})."
    return _one(fleet, kind, vertex, f"{ago}; {why}{heard}", remedy)


# --- devices that answer ----------------------------------------------------------------


def _troubled(fleet: FleetStatus) -> Iterator[Finding]:
    for v, reply in fleet.replies.items():
        if v in fleet.gone:
            continue
        if reply.failures:
            times = "in this round" if reply.failures == 1 else f"{reply.failures} times in a row"
            yield _one(
                fleet, "app-failing", v, f"its app fails, {times}: “{reply.last_error}”",
                f"Mend the app there ({_log_of(v)}); after 10 rounds its peer ends.",
            )  # fmt: skip
        if reply.disk:
            yield _one(
                fleet, "disk", v, f"its disk takes nothing, so it sends nothing: {reply.disk}",
                "It goes on by itself then.",
            )  # fmt: skip
        if reply.stalled_s and not (reply.failures or reply.disk):
            yield _stalled(fleet, reply)
        if reply.evaluation_error:
            yield _one(
                fleet, "evaluation-failing", v,
                f"the app's evaluation fails: “{reply.evaluation_error}”",
                f"It trains on; mend the app's evaluate ({_log_of(v)}).",
            )  # fmt: skip
        if _recent(reply, "damaged"):
            yield _one(
                fleet, "damaged", v, "a file of its state was damaged and passed over",
                "If that comes again, replace its disk or card.",
            )  # fmt: skip


def _apart(fleet: FleetStatus) -> Iterator[Finding]:
    """Whoever has no part, or little, in what the others do."""
    for v, reply in fleet.replies.items():
        if _is_left_aside(fleet, v) or reply.phase in OVER:
            continue  # that is said of it
        # A device whose app fails has nothing for its neighbors, so they have no part either.
        if reply.HasField("alone_since") and not reply.failures:
            since = reply.alone_since
            when = f"since round {since}" if since else "from its first round on"
            yield _one(
                fleet, "alone", v, f"trains alone {when}: no neighbor has a part in its rounds",
                "See to its edges.",
            )  # fmt: skip
        told = reply.failures or reply.disk or reply.stalled_s or reply.HasField("alone_since")
        if not told and reply.lately >= _ENOUGH and 2 * reply.took_part < reply.lately:
            yield _left_out(fleet, reply)


def _is_left_aside(fleet: FleetStatus, vertex: int) -> bool:
    return any(n.quarantined_until for n in fleet.told_of(vertex).values())


def _stalled(fleet: FleetStatus, reply: pb.StatusReply) -> Finding:
    v, since = reply.vertex, in_words(reply.stalled_s)
    usual = in_words(reply.seconds_per_round) if reply.seconds_per_round else "far less"
    what = f"stalled: no round has ended for {since}, where one takes {usual}; it is {reply.phase}"
    remedy = f"See its log ({_log_of(v)})."
    if reply.phase in ("training", "combining"):
        what += f", so its app hangs in round {reply.round + 1}"
        remedy = f"See its log ({_log_of(v)}), mend what the app waits for, and restart the peer."
    elif reply.waits_for:
        what += f" for {_vertices(list(reply.waits_for))}"
        remedy = "See to these neighbors first."
    return _one(fleet, "stalled", v, what, remedy)


def _left_out(fleet: FleetStatus, reply: pb.StatusReply) -> Finding:
    v = reply.vertex
    what = f"took part in {reply.took_part} of the last {reply.lately} rounds"
    others = [n.pace_s for n in reply.neighbors if n.up and n.pace_s > 0.0]
    own = reply.train_s or reply.since_round_s
    if others and own > 2.0 * min(others):
        what += f": it trains {in_words(own)}, its neighbors' rounds take {in_words(min(others))}"
        remedy = (
            "Give it fewer local steps, or let the others wait: a larger timing.least-s in all."
        )
    else:
        remedy = f"See to its edges, and to its log ({_log_of(v)})."
    return _one(fleet, "left-out", v, what, remedy)


def _recent(reply: pb.StatusReply, name: str) -> bool:
    return name in reply.ago_s and reply.ago_s[name] < _RECENT_S


def _clocks(fleet: FleetStatus) -> Iterator[Finding]:
    for v, reply in fleet.replies.items():
        off = reply.clock_s - fleet.now_s
        if fleet.now_s and reply.clock_s and abs(off) > _CLOCK_S:
            way, off = "ahead of" if off > 0 else "behind", round(off, -1)
            yield _one(
                fleet, "clock", v, f"its clock is {in_words(abs(off))} {way} this computer's",
                "Set it (NTP): certificates are judged by it.",
            )  # fmt: skip


def _certificates(fleet: FleetStatus) -> Iterator[Finding]:
    for v, reply in fleet.replies.items():
        for kind, ends, remedy in (
            ("certificate", reply.certificate_ends, f"flower-dhb mesh renew MESH --vertex {v}"),
            ("authority", reply.authority_ends, "flower-dhb mesh renew MESH --authority"),
        ):
            days = (ends - fleet.now_s) / _DAY_S
            if not (ends and fleet.now_s) or days >= _EXPIRES_DAYS:
                continue
            whose = "its certificate" if kind == "certificate" else "the authority that it trusts"
            when = f"ends in {in_words(days * _DAY_S)}" if days > 0 else "has ended"
            yield _one(fleet, kind, v, f"{whose} {when}", f"Renew it: {remedy}.")


# --- edges ------------------------------------------------------------------------------


def _split(fleet: FleetStatus) -> Iterator[Finding]:
    parts = fleet.parts
    down = [n.down_s for r in fleet.replies.values() for n in r.neighbors if not n.up]
    if len(parts) < 2 or fleet.starting or max(down, default=0.0) < _SETTLES_S:
        return
    shown = "; ".join(_ranges(part) for part in parts[:5])
    more = f"; and {len(parts) - 5} more" if len(parts) > 5 else ""
    yield Finding(
        "split", "the network", f"{len(parts)} parts", (),
        f"split into {len(parts)} parts that cannot agree ({shown}{more})",
        "Mend the edges between them.",
    )  # fmt: skip


# What a reason for a missing connection asks for; the first that fits.
_EDGE_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"; (give|copy|run the|set it|bring|upgrade)", "Do so, and start again whom you changed."),
    (
        r"in run |another mesh",
        "Both ends need files of one and the same mesh: give each its own folder again, and start "
        "both.",
    ),
    (
        r"expired|not valid|not yet valid",
        "Renew the certificate of vertex {b}, or set the clock that is wrong.",
    ),
    (
        r"authority|ertificate|TLS|andshake|revoked",
        "See to the certificate of vertex {b}: flower-dhb mesh renew MESH --vertex {b}.",
    ),
    (r"nothing listens|refused", "Start the peer of vertex {b}, or correct its address."),
    (
        r"no answer|says nothing|no network|DNS|host name|timed? ?out|unreachable|firewall",
        "See to the network between the two: address and port of vertex {b}, firewall, power.",
    ),
    (r"version", "Bring both ends to versions that go together."),
)
_EDGE_REMEDY = "See to the network between them, and to both logs."


def _edges_down(fleet: FleetStatus) -> Iterator[Finding]:
    """Edges that are not there, unless one end is known to be gone: that is said of it."""
    absent = {"silent", "unknown", "ended", "starting", *OVER}
    for a, b in fleet.edges:
        if fleet.state(a) in absent or fleet.state(b) in absent:
            continue
        ends = [(v, w, fleet.told_of(w).get(v)) for v, w in ((a, b), (b, a))]
        down = [(v, w, n) for v, w, n in ends if n is not None and not n.up]
        if not down or any(n is not None and (n.done or n.up) for _, _, n in ends):
            continue
        for_s = min(n.down_s for _, _, n in down)
        kind = "edge-down" if for_s >= _SETTLES_S else "edge-lost"
        # The end that dials knows best, if it knows anything.
        v, w, told = max(down, key=lambda end: (bool(end[2].why_down), end[2].dials))
        what = f"down for {in_words(for_s)}"
        if told.why_down:
            what += f"; vertex {v}{', which dials,' if told.dials else ''} says: {told.why_down}"
        remedy = next(
            (text for words, text in _EDGE_REMEDIES if re.search(words, told.why_down)),
            _EDGE_REMEDY,
        )
        yield _edge(kind, a, b, what.rstrip("."), remedy.format(a=v, b=w))


def _slow_edges(fleet: FleetStatus) -> Iterator[Finding]:
    links = fleet.links
    usual = sorted(link.way_s for link in links)[len(links) // 2 :][:1]
    for link in links:
        share = link.way_s / link.round_s if link.round_s > 0.0 else 0.0
        least = usual[0] * _SLOW_TIMES if len(links) > 2 else 0.0
        if link.way_s < max(_SLOW_LINK_S, least) or share < _SLOW_SHARE:
            continue
        yield _edge(
            "slow-link", *link.edge,
            f"its link takes {in_words(link.way_s)} of each round of {in_words(link.round_s)}",
            "More local steps in fewer rounds, a better link, or a graph without this edge help.",
        )  # fmt: skip
    for v, reply in fleet.replies.items():
        for n in reply.neighbors:
            if _recent(reply, f"slow-link.{n.vertex}"):
                yield _edge(
                    "too-slow", min(v, n.vertex), max(v, n.vertex),
                    f"what vertex {n.vertex} sends does not come whole within a round of vertex "
                    f"{v}",
                    "Set a larger timing.ceiling-s, train more local steps in fewer rounds, make "
                    "the mesh anew with --compression int8, or use a smaller model.",
                )  # fmt: skip


def _slow_devices(fleet: FleetStatus) -> Iterator[Finding]:
    pace = fleet.pace
    times = {v: r.train_s for v, r in fleet.replies.items() if r.train_s > 0.0}
    if pace is None or pace.vertex is None or len(times) < 3:
        return
    usual = sorted(times.values())[len(times) // 2]
    if pace.part_s > max(_SLOW_LINK_S, _SLOW_TIMES * usual):
        yield _one(
            fleet, "slow-device", pace.vertex,
            f"trains {in_words(pace.part_s)} a round, most others {in_words(usual)}: it sets the "
            "pace of all",
            "Give it fewer local steps.",
        )  # fmt: skip


# --- what devices say of each other -----------------------------------------------------


def _doubles(fleet: FleetStatus) -> Iterator[Finding]:
    for vertex, by in _told_lately(fleet, ("two-devices",)).items():
        yield _one(
            fleet, "double", vertex,
            f"two devices show its certificate, say {_vertices(by)}, whose logs have both "
            "addresses",
            "Stop one of them; if the key was stolen: flower-dhb mesh renew MESH --vertex "
            f"{vertex}, then flower-dhb mesh revoke.",
        )  # fmt: skip


def _liars(fleet: FleetStatus) -> Iterator[Finding]:
    told = _told_lately(
        fleet, ("screened", "quarantined", "refused.screened", "refused.content", "not-followed")
    )
    for v, reply in fleet.replies.items():
        for n in reply.neighbors:
            if n.quarantined_until and v not in told.setdefault(n.vertex, []):
                told[n.vertex].append(v)
    for vertex, by in told.items():
        if not by:
            continue
        until = [
            f"until round {n.quarantined_until}"
            for j, n in fleet.told_of(vertex).items()
            if n.quarantined_until and j in by
        ]
        aside = f", which leave it aside {until[0]}" if until else ""
        yield _one(
            fleet, "liar", vertex,
            f"what it sends is absurd, say {_vertices(sorted(by))}{aside}",
            "See whether its app diverges or its data are broken; if neither, whether it is still "
            "yours.",
        )  # fmt: skip


def _told_lately(fleet: FleetStatus, names: tuple[str, ...]) -> dict[int, list[int]]:
    """Of whom neighbors have counted one of these lately, and which neighbors."""
    found: dict[int, list[int]] = {}
    for v, reply in sorted(fleet.replies.items()):
        for n in reply.neighbors:
            if any(_recent(reply, f"{name}.{n.vertex}") for name in names):
                found.setdefault(n.vertex, []).append(v)
    return found


def _differences(fleet: FleetStatus) -> Iterator[Finding]:
    seen = set()
    for v, reply in fleet.replies.items():
        for n in reply.neighbors:
            edge = (min(v, n.vertex), max(v, n.vertex))
            if "app" in n.differs and n.up and edge not in seen:
                seen.add(edge)
                yield _edge(
                    "other-code", *edge, "its two ends run different code of the app",
                    "Unless you are changing the app device by device, give both the same.",
                )  # fmt: skip
        one_sided = sum(n.one_sided for n in reply.neighbors)
        if one_sided:
            yield _one(
                fleet, "one-sided", v, f"{one_sided} of its edges counted at one end only",
                "A failure came between two acknowledgments; there is nothing to do.",
            )  # fmt: skip


def _versions(fleet: FleetStatus) -> Iterator[Finding]:
    of = {v: r.software for v, r in fleet.replies.items() if r.software}
    if len(set(of.values())) < 2:
        return
    most = Counter(of.values()).most_common(1)[0][0]
    for v, version in of.items():
        if version != most:
            yield _one(
                fleet, "versions", v, f"runs flower-dhb {version}, most others {most}",
                "Upgrade whichever is older when it suits.",
            )  # fmt: skip


def _behind(fleet: FleetStatus) -> Iterator[Finding]:
    newest: dict[str, int] = {}
    for reply in fleet.replies.values():
        for kind, number in reply.bulletins.items():
            newest[kind] = max(newest.get(kind, 0), number)
    for v, reply in fleet.replies.items():
        old = sorted(k for k, number in newest.items() if reply.bulletins.get(k, 0) < number)
        if old and reply.phase not in OVER:
            yield _one(
                fleet, "behind", v,
                "does not have yet: " + ", ".join(f"{k} {newest[k]}" for k in old),
                "It learns of it from its neighbors as soon as it is connected.",
            )  # fmt: skip


_JUDGES: tuple[Callable[[FleetStatus], Iterator[Finding]], ...] = (
    _absent,
    _troubled,
    _apart,
    _clocks,
    _certificates,
    _split,
    _edges_down,
    _slow_edges,
    _slow_devices,
    _doubles,
    _liars,
    _differences,
    _versions,
    _behind,
)
