"""Ray Serve's request router: a question goes to the replica that has its picture.

It runs where the questions come from, so it knows of all of them at once.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from lira_serve.asked import Asked
from lira_serve.on_ray.homes import Homes


class PictureRouter(RequestRouter):
    """Sends calls with an `Asked` to its picture's home, and others anywhere."""

    def initialize_state(self, **options: Any) -> None:
        self._homes: Homes[ReplicaID] = Homes()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        asked = pending_request.args[0] if pending_request and pending_request.args else None
        if not candidate_replicas or not isinstance(asked, Asked):
            return [candidate_replicas]
        known = self.replica_queue_len_cache
        questions = {one.replica_id: known.get(one.replica_id) or 0 for one in candidate_replicas}
        home = self._homes.of(asked.digest, questions)
        return [[one for one in candidate_replicas if one.replica_id == home]]
