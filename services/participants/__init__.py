"""The participants service: owns delegations and the people on their rosters.

Publishes `attache.participants` and `attache.participants.cleared`; listens to `attache.schedule.cleared`, to know the
trips that delegations belong to.
"""
