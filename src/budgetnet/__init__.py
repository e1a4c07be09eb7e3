"""budgetnet trains the best image classifier that fits a parameter budget."""

__version__ = "0.1.0"
