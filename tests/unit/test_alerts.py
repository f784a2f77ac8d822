"""deploy/alerts.yml: every rule finds its fault in the metrics that peers serve, and no other."""

import re
from pathlib import Path

import pytest
import yaml

from flower_dhb.peer.watch.metrics import families
from flower_dhb.peer.wire import relay_pb2 as pb
from tests.support.fleets import NOW, Troubled
from tests.support.promql import Moment

FILE = Path(__file__).parents[2] / "deploy" / "alerts.yml"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load(FILE.read_text())["groups"]
    for rule in group["rules"]
}


def moment(replies, before=None):
    """The metrics of some peers, as Prometheus reads them."""
    samples = [
        (sample.name, sample.labels, sample.value)
        for reply in replies
        for family in families(reply)
        for sample in family.samples
    ]
    return Moment(samples, NOW, before)


def well():
    fleet = Troubled(5)
    for v, reply in fleet.replies.items():
        reply.certificate = "1"
        reply.counts["two-devices.3"] = 1  # some time ago
        assert v == reply.vertex
    return fleet


def firing(fleet, before=None):
    now = moment(fleet.replies.values(), before)
    return {name: found for name, rule in RULES.items() if (found := now.ask(rule["expr"]))}


def silent(fleet):
    fleet.silence(3)


def in_the_middle_of_its_end(fleet):
    """It has said goodbye: nobody misses it."""
    fleet.silence(3)
    for j in (2, 4):
        fleet.end(j, 3).done = True


FAULTS = [
    (silent, {"PeerSilent": {"3"}, "EdgeDown": {"2-3", "4-3"}}),
    (in_the_middle_of_its_end, {}),
    (lambda f: f.down(3, 4), {"EdgeDown": {"3-4", "4-3"}}),
    (lambda f: f.down(3, 4, 5.0), {}),
    (lambda f: setattr(f[3], "stalled_s", 99.0), {"PeerStalled": {"3"}}),
    (lambda f: setattr(f[3], "failures", 2), {"PeerAppFailing": {"3"}}),
    (lambda f: setattr(f[3], "failures", 1), {}),
    (lambda f: setattr(f[3], "evaluation_error", "x"), {"PeerEvaluationFailing": {"3"}}),
    (lambda f: setattr(f[3], "disk", "full"), {"PeerDiskFailing": {"3"}}),
    (lambda f: setattr(f[3], "alone_since", 90), {"PeerAlone": {"3"}}),
    (lambda f: setattr(f[3], "took_part", 9), {"PeerLeftOut": {"3"}}),
    (lambda f: (setattr(f[3], "took_part", 0), setattr(f[3], "lately", 0)), {}),
    (lambda f: setattr(f[3], "certificate_ends", int(NOW) + 86400), {"CertificateEnds": {"3"}}),
    (lambda f: setattr(f[3], "authority_ends", int(NOW) + 86400), {"AuthorityEnds": {"3"}}),
    (lambda f: setattr(f.end(2, 3), "quarantined_until", 130), {"NeighborNotBelieved": {"3"}}),
    (lambda f: f[2].counts.update({"two-devices.3": 2}), {"TwoDevicesWithOneCertificate": {"2-3"}}),
    (lambda f: setattr(f[3], "clock_s", NOW - 300.0), {"ClockWrong": {"3"}}),
]


@pytest.mark.parametrize(("fault", "alerts"), FAULTS, ids=range(len(FAULTS)))
def test_each_rule_fires_at_its_fault_and_at_no_other(fault, alerts):
    before = moment(well().replies.values())
    fleet = well()
    assert firing(fleet, before) == {}
    fault(fleet)
    told = {
        name: {"-".join(x[k] for k in ("vertex", "neighbor") if k in x) for x, _ in found}
        for name, found in firing(fleet, before).items()
    }
    assert told == alerts


def test_each_rule_has_a_fault_here():
    assert {name for _, alerts in FAULTS for name in alerts} == set(RULES)


def test_the_file_is_one_that_prometheus_reads():
    """The fields of a rule, their forms, and labels that the expression leaves over."""
    document = yaml.safe_load(FILE.read_text())
    assert set(document) == {"groups"}
    everything = moment(well().replies.values())
    for group in document["groups"]:
        assert set(group) == {"name", "rules"}
        for rule in group["rules"]:
            assert {"alert", "expr", "labels", "annotations"} <= set(rule)
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
            assert re.fullmatch(r"[A-Za-z]+", rule["alert"])
            assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert set(rule["annotations"]) == {"summary", "remedy"}
            named = re.findall(r"flower_dhb_\w+", rule["expr"])
            assert named
            labels = [{k for k, _ in found} for name in named for found in everything.named[name]]
            text = " ".join(rule["annotations"].values())
            used = set(re.findall(r"\$labels\.(\w+)", text))
            by = re.match(r"\s*max by \((\w+)\)", rule["expr"])
            left = {by[1]} if by else set.intersection(*labels)
            assert used <= left, rule["alert"]
            for braces in re.findall(r"\{\{(.*?)\}\}", text):
                assert re.fullmatch(
                    r" \$(labels\.\w+|value( \| humanize(Duration|Percentage)?)?) ", braces
                )


def test_a_rule_for_a_metric_that_is_not_there_is_noticed():
    now = moment(well().replies.values())
    with pytest.raises(KeyError):
        now.ask("flower_dhb_stalled > 0")
    with pytest.raises(SyntaxError):
        now.ask("flower_dhb_alone == 1 or flower_dhb_alone")
    assert now.ask('flower_dhb_info{version="0.2.0"}') == []
    assert len(now.ask('flower_dhb_info{version="0.1.0"}')) == 5


def test_what_is_not_known_is_not_told():
    """Of a device without TLS and before its first round."""
    found = moment([pb.StatusReply(vertex=3, clock_s=NOW)])
    named = {name for name, samples in found.named.items() if samples}
    assert "flower_dhb_round" in named
    assert not named & {
        "flower_dhb_certificate_days_left", "flower_dhb_left_seconds",
        "flower_dhb_neighbor_heard_seconds", "flower_dhb_neighbor_agreed_seconds",
    }  # fmt: skip
