"""The decide stage: the product's policy as pure functions, its guards in sequence, and the allocation of slots to pipelines."""
