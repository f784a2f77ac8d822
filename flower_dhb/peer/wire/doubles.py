"""Two devices with one identity: a copied key, or a disk image used twice."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from flower_dhb.peer.monitor import Monitor

__all__ = ["Doubles"]

_REMEMBERED = 8  # processes of one identity


class Doubles:
    """Notices when processes with one certificate come by turns.

    Each process names itself by a number that it draws at its start. After a restart there
    is a new one, and the old one does not come back: who comes back was never gone.
    """

    def __init__(self, neighbors: Iterable[int], monitor: Monitor) -> None:
        self._seen: dict[int, dict[str, str]] = {j: {} for j in neighbors}  # address by number
        self._monitor = monitor
        self._lock = threading.Lock()

    def seen(self, neighbor: int, instance: str, address: str) -> str | None:
        """A process shows a neighbor's certificate. Says so if another one does as well."""
        if not instance:
            return None
        with self._lock:
            seen = self._seen.setdefault(neighbor, {})
            last = next(reversed(seen), instance)
            known = seen.pop(instance, None) is not None
            other = seen.get(last, "")
            seen[instance] = address
            if len(seen) > _REMEMBERED:
                del seen[next(iter(seen))]
        if last == instance or not known:
            return None
        why = (
            f"two devices show the certificate of vertex {neighbor}, at {other} and at {address}; "
            f"stop one of them, and if the key was copied, issue a new one with 'flower-dhb mesh "
            f"renew --vertex {neighbor} --revoke-old'"
        )
        self._monitor.count("two-devices", neighbor)
        self._monitor.warning("two-devices", neighbor=neighbor, why=why)
        return why
