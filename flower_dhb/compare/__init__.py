"""Comparing methods: the same problem, graph, data and tuning for all of them.

task = TorchTask(Net, (x, y), test=(test_x, test_y))
results = compare(Comparison(problem=task, topologies=["ring:8"], methods=["dmsgd", "dsgd"]))
print(results)
"""

from flower_dhb.extras import installed, needs_extra

if not installed("sklearn", "torch"):
    raise needs_extra("comparing methods", "engine")

from flower_dhb.compare.comparison import compare
from flower_dhb.compare.report import Results
from flower_dhb.compare.settings import Comparison
from flower_dhb.compare.torch_task import TorchTask

__all__ = ["Comparison", "Results", "TorchTask", "compare"]
