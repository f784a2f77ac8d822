"""How much goes at once, over links of any rate and length, in virtual time."""

import heapq

import pytest

from flower_dhb.peer.wire.flow import CHUNK_BYTES, Flow, Receipts


class Link:
    """A link whose queue has no end, and the way back, where receipts wait behind something else.

    rate: bytes a second; way_s: seconds each way; back_s: what receipts wait. waits: how long
    each chunk stood in the queue. chunks: the size of each, and what it took on the link, seconds.
    """

    def __init__(self, rate, way_s, back_s=0.0):
        self.rate, self.way_s, self.back_s = rate, way_s, back_s
        self.flow, self.receipts = Flow(), Receipts()
        self.now = 100.0
        self.free_s = 0.0
        self.waits, self.chunks, self.line = [], [], []
        self.told = 0

    def send(self, total):
        """Send so many bytes. Returns the seconds until the last of them has come."""
        begin, left, order = self.now, total, 0
        goal = self.receipts.n_bytes + total
        while self.receipts.n_bytes < goal:
            while left and self.flow.ready:
                size = min(self.flow.chunk_bytes, left)
                left -= size
                self.flow.sent(size, self.now)
                self.waits.append(max(self.free_s - self.now, 0.0))
                self.chunks.append((size, size / self.rate))
                self.free_s = max(self.free_s, self.now) + size / self.rate
                order += 1
                heapq.heappush(self.line, (self.free_s + self.way_s, order, "chunk", size))
            due = self.receipts.due_s(self.now)
            if due is not None and (not self.line or self.now + due <= self.line[0][0]):
                self.now += due
                self.receipts.tell(self.now)
                self.told += 1
                order += 1
                found = (self.receipts.n_bytes, self.receipts.clock_s + 5555.0)
                at = self.now + self.back_s + self.way_s
                heapq.heappush(self.line, (at, order, "receipt", found))
                continue
            self.now, _, kind, found = heapq.heappop(self.line)
            if kind == "chunk":
                self.receipts.took(found, self.now)
            else:
                self.flow.received(*found, self.now)
        return self.now - begin


SECONDS = 30.0


@pytest.mark.parametrize("way_s", [0.0001, 0.02, 0.3])
@pytest.mark.parametrize("rate", [12_500, 125_000, 1.25e6, 1.25e7, 1e9])
def test_a_link_is_full_and_nothing_waits_long(rate, way_s):
    link = Link(rate, way_s)
    total = int(min(SECONDS * rate, 2e8))
    seconds = link.send(total)
    turns = 16 if way_s > 0.1 else 30  # the window doubles in each
    assert seconds < 1.05 * total / rate + turns * 2 * way_s + 0.2
    assert max(took for _, took in link.chunks) < 1.0
    settled = len(link.waits) // 3
    assert max(link.waits[settled:]) < 1.5
    assert link.flow.rate == pytest.approx(rate, rel=0.15) or rate > 1e8


def test_chunks_are_as_large_as_can_be_on_a_fast_link():
    link = Link(1e9, 0.0002)
    link.send(2**28)
    assert link.chunks[-2][0] == CHUNK_BYTES
    small = sum(size < CHUNK_BYTES for size, _ in link.chunks)
    assert small < 60
    assert link.told < 200  # receipts cost the receiver's time


def test_a_second_payload_begins_where_the_first_left_off():
    link = Link(1.25e6, 0.3)
    first = link.send(5_000_000)
    link.now += 30.0
    assert link.send(5_000_000) < min(first - 2.0, 4.0 + 0.3 + 1.0)


def test_a_link_that_slows_down_gets_smaller_chunks_and_one_that_recovers_larger_ones():
    link = Link(1.25e6, 0.02)
    link.send(10_000_000)
    large = link.chunks[-2][0]
    link.rate = 125_000.0
    link.send(3_000_000)
    small = link.chunks[-2][0]
    assert small < large / 5
    assert max(link.waits[-20:]) < 1.5
    link.rate = 1.25e6
    link.send(10_000_000)
    assert link.chunks[-2][0] > 5 * small


def test_what_fills_the_way_back_does_not_keep_the_way_there_empty():
    """Receipts wait for a second behind the neighbor's own payload."""
    link = Link(125_000.0, 0.02, back_s=1.0)
    assert link.send(4_000_000) < 1.1 * 32.0 + 5 * 1.04
    assert max(link.waits) < 1.5


def test_more_than_was_sent_is_not_believed_and_old_news_changes_nothing():
    flow = Flow()
    flow.sent(8192, 1.0)
    flow.received(10**12, 1.0, 1.1)
    assert flow.ready
    window = flow._window
    flow.received(5, 1.0, 1.2)
    assert flow._window == window <= 4 * 8192
