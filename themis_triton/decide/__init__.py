"""The decide stage: policies as pure functions `decide(state, policy_input, config) -> (state, Decision)`, and guards in sequence."""
