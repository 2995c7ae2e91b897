"""Results of evaluations, at the path that users import them from."""

from .hub.results import Result, environment, load_results, save_results


__all__ = ["Result", "environment", "load_results", "save_results"]
