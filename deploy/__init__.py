"""What is needed around the services: locks, a Kafka for machines without Docker, containers."""
