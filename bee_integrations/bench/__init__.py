"""`bee bench`: what Bee reaches on this machine, beside a peer and beside what the machine allows."""

from .benchmark import BenchOptions, load_report, merge_figures, run_benchmark

__all__ = ["BenchOptions", "load_report", "merge_figures", "run_benchmark"]
