"""All benchmarks by name."""

from tests.benchmarks import curves, memory, meta_gradients, on_gpu, optimizer_step, start_up, training
from tests.benchmarks.measuring import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    name: benchmark
    for module in (meta_gradients, training, optimizer_step, memory, start_up, curves, on_gpu)
    for name, benchmark in module.BENCHMARKS.items()
}
