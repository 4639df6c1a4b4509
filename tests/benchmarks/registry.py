"""All benchmarks by name."""

from tests.benchmarks import curves, memory, meta_gradients, optimizer_step, start_up, training
from tests.benchmarks.measuring import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    name: benchmark
    for module in (meta_gradients, training, optimizer_step, memory, start_up, curves)
    for name, benchmark in module.BENCHMARKS.items()
}
