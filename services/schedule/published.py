"""What of this service's events is told to others: all that the contract declares, and nothing has to be kept back."""

from shared.publishing import body, is_open

__all__ = ["body", "is_open"]
