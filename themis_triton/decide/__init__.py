"""The decide stage: policies as pure functions `decide(state, situation, config) -> (state, Decision)`, and guards in sequence."""
