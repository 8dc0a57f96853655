"""The store of captured logit rows: written by the agent, read by `accuracy`; knows neither."""
