r"""How the demo models were made: run from a checkout, as it is not installed."""
