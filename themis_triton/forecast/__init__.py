"""Forecasts of the arrival rate from its last minute; pure functions, the learnt ones with weights that ship beside them."""
