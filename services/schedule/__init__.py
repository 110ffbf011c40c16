"""The schedule service: owns trips and their stops, movements and meetings.

Publishes `attache.schedule` and `attache.schedule.cleared`; listens to `attache.participants.cleared`, to know the
delegations that host and are invited.
"""
