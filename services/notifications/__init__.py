"""The notifications service: owns feed links, and publishes the feeds.

Publishes `attache.notifications` and `attache.notifications.cleared`; listens to `attache.schedule.cleared` and
`attache.participants.cleared`, from which alone it builds its picture of trips, meetings and rosters.
"""
