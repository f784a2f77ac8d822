"""A device's connections, and what the operator has said, without an app and without a process."""

from __future__ import annotations

import dataclasses

from flower_dhb.peer.device.bulletins import Bulletins
from flower_dhb.peer.device.settings import PeerSettings
from flower_dhb.peer.wire import relay_pb2 as pb
from flower_dhb.peer.wire.bulletin import AUTHORITY, EDITION, REVOCATIONS
from flower_dhb.peer.wire.operations import Operations
from flower_dhb.peer.wire.renewing import Renewing
from flower_dhb.peer.wire.transport import Limits, Transport
from flower_dhb.peer.wire.trust import check_authority, check_revocations
from tests.support.agents import Shell


class Device:
    """The connections of one device of a mesh, and its bulletins, whose disk takes all at once.

    full: it takes nothing. tls: changes of its files' settings, such as another clock.
    """

    def __init__(self, settings: PeerSettings, *, full: bool = False, **tls: object) -> None:
        assert settings.tls is not None
        settings.state_dir.mkdir(exist_ok=True)
        renewed = settings.state_dir / "identity.pem"
        self.tls = dataclasses.replace(settings.tls, **{"renewed": renewed, **tls})
        self.shell = shell = Shell(settings.vertex, settings.neighbors, lambda k: b"")
        self.board = Bulletins(
            settings.mesh,
            roots=self.tls.roots,
            state_dir=settings.state_dir,
            folder=settings.bulletins,
            monitor=shell.monitor,
            store=lambda path, data, done: None if full else done(),
            tell=lambda notice: self.transport.tell(notice),
        )
        self.transport = Transport(
            vertex=settings.vertex,
            run=settings.run,
            vectors=(),
            agreement={},
            neighbors=settings.neighbors,
            deliver=shell.deliver,
            monitor=shell.monitor,
            listen=settings.listen,
            dial=settings.dial,
            tls=self.tls,
            operations=Operations(
                status=self._status,
                stop=lambda _: pb.StopReply(),
                renew=Renewing(self.tls, shell.monitor).answer,
            ),
            limits=Limits(retry_s=0.02, retry_max_s=0.1),
            board=self.board,
        )
        self.board.subscribe(AUTHORITY, self.tls.trust.take_authority, check_authority)
        self.board.subscribe(REVOCATIONS, self.tls.trust.take_revocations, check_revocations)
        for kind in (AUTHORITY, REVOCATIONS):
            self.board.subscribe(kind, lambda _: self.transport.judge())

    def _status(self, request: pb.StatusRequest) -> pb.StatusReply:
        standing = self.tls.standing()
        assert standing is not None
        return pb.StatusReply(issuer=standing.issuer, trusts=standing.trusts)

    def __enter__(self) -> Device:
        self.shell.start()
        self.transport.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.stop(1.0)

    @property
    def monitor(self):
        return self.shell.monitor

    def number(self, kind: str = EDITION) -> int:
        return self.board.known().get(kind, 0)

    def up(self) -> tuple[int, ...]:
        return self.shell.up()
