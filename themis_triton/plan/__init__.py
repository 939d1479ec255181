"""From what is and what should be to ordered actions, and the route table."""
