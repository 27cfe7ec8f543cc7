"""Ray itself, if it is installed, and the machines of its cluster."""

from collections import Counter
from typing import Any

from lightning_same.experiments.study.errors import StudyError


def the_ray() -> Any:
    """The module ``ray``.

    Raises:
        StudyError: if it is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise StudyError("--ray needs Ray: pip install 'lightning-same[ray]'.") from error
    return ray


class Nodes:
    """The machines of the cluster as they are now."""

    def alive(self) -> list[str]:
        """The ids of those that are alive and have a CPU for runs: the head of a cluster often has none."""
        nodes = [node for node in the_ray().nodes() if node["Alive"]]
        return [node["NodeID"] for node in nodes if node["Resources"].get("CPU")] or [node["NodeID"] for node in nodes]

    def most(self, kind: str) -> float:
        """The largest number of CPUs or GPUs that one of them has."""
        return max((node["Resources"].get(kind, 0.0) for node in the_ray().nodes() if node["Alive"]), default=0.0)

    def name(self, wanted: str) -> str:
        """The name of a machine; where several have it, with the first digits of its id."""
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in the_ray().nodes()}
        name = names.get(wanted, "a node")
        return name if Counter(names.values())[name] < 2 else f"{name} ({wanted[:6]})"


def on_node(node: str, soft: bool) -> Any:
    """Place a task on a machine; with ``soft`` on another one if it is gone or has no room now."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Without the last one a task would wait for its machine, however long that is busy, while others have room.
    return NodeAffinitySchedulingStrategy(node_id=node, soft=soft, _spill_on_unavailable=soft)
