"""Entry points: parse a config, call one function of `cluster`, print one JSON line."""
