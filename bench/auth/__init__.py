"""What authentication, quotas and their outages cost, and how exact they are."""
